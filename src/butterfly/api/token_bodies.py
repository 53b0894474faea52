"""What /tokenize, /detokenize and /tokenizer_info take and give: vLLM's names, which other clients know."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from butterfly.api.chat_messages import ChatMessage, check_messages, check_template_variables
from butterfly.api.checked import Body
from butterfly.api.problems import UnsupportedFieldError
from butterfly.api.shapes import Shape
from butterfly.api.tool_bodies import MAX_TOOLS, Tool, check_tools
from butterfly.errors import InvalidRequestError


class TokenizeBody(Body):
    """Either a text or the messages of a chat. null means the default everywhere."""

    model: Annotated[str | None, Field(description="May be left out.")] = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage] | None, Field(min_length=1)] = None
    add_special_tokens: Annotated[
        bool | None, Field(description="What the model wants around a text; default true, and false with messages.")
    ] = None
    return_token_strs: bool | None = None
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[
        dict[str, JsonValue] | None, Field(description="More variables for the chat template.")
    ] = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("prompt or messages: send exactly one of them", "prompt")
        if (self.model_extra or {}).get("chat_template") is not None:
            raise UnsupportedFieldError("chat_template is not supported; the model's own is used", "chat_template")
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "continue_final_message cannot be combined with add_generation_prompt", "continue_final_message"
            )
        check_messages(self.messages or [])
        check_tools(self.tools or [], None)
        check_template_variables(self.chat_template_kwargs or {})


class TokenizeAnswer(Shape, frozen=True):
    count: int
    max_model_len: int  # tokens, prompt and output together
    tokens: list[int]
    token_strs: list[str] | None = None  # the text of each; part of a character is bytes:\xNN...


class DetokenizeBody(Body):
    model: Annotated[str | None, Field(description="May be left out.")] = None
    tokens: list[Annotated[int, Field(ge=0)]]


class DetokenizeAnswer(Shape, frozen=True):
    prompt: str  # special tokens written out


class TokenizerInfo(Shape, frozen=True):
    """Some of a Hugging Face tokenizer_config.json."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None  # the end token, where the model has none: nothing is ever padded here
    chat_template: str | None
