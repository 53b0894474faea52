"""The request bodies of /v1/chat/completions and /v1/completions, checked.

Rules: a wrong type is an error that names its field; a field that would change the output and is not
honoured is an error too, unless it has a value that asks for nothing; other unknown fields are ignored,
as clients send many.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from butterfly.api.problems import UnsupportedFieldError
from butterfly.errors import InvalidRequestError

MAX_CHOICES = 128  # answers of one call: prompts times n
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions

# What each unsupported field may be without asking for anything.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "min_tokens": (None, 0),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "stop_token_ids": (None, []),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _text_of(content: object) -> object:
    """Join the text parts of a message by newlines, as templates take one string."""
    if not isinstance(content, list):
        return content
    return "\n".join(_text_of_part(part) for part in content)


def _text_of_part(part: object) -> str:
    if isinstance(part, dict) and part.get("type") != "text" and isinstance(part.get("type"), str):
        raise PydanticCustomError("unsupported", "parts of type '{kind}' are not supported yet", {"kind": part["type"]})
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise PydanticCustomError("content_part", "a part must be an object with type 'text' and a text")
    text: str = part["text"]
    return text


def _prompts_of(value: object) -> object:
    """Bring the four forms of `prompt` to one: a list of texts and lists of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    is_prompts = isinstance(value, list) and all(
        isinstance(item, str) or (isinstance(item, list) and all(type(token) is int for token in item))
        for item in value
    )
    if not is_prompts:
        raise PydanticCustomError("prompt", "must be a text, a list of texts, token ids or a list of token ids")
    if not value:
        raise PydanticCustomError("prompt", "must not be empty")
    return value


class _Base(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


class StreamOptions(_Base):
    include_usage: bool | None = False


class ChatMessage(_Base):
    """One message. `developer` is OpenAI's newer name of `system`; templates know only the latter."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | None, BeforeValidator(_text_of)] = None

    def for_template(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content or ""}


class GenerationBody(_Base):
    """What both endpoints share. null means the default everywhere, as in OpenAI's API."""

    model: str
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None  # -1 and 0: all
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**64)] = None
    stop: Annotated[list[str] | None, BeforeValidator(_one_or_many)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    user: str | None = None  # accepted, unused

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stops: list[str] | None) -> list[str] | None:
        if stops is None:
            return None
        if len(stops) > MAX_STOPS:
            raise PydanticCustomError("stop", "at most {limit} stop strings", {"limit": MAX_STOPS})
        if any(not stop or len(stop) > MAX_STOP_CHARACTERS for stop in stops):
            raise PydanticCustomError(
                "stop", "a stop string has 1 to {limit} characters", {"limit": MAX_STOP_CHARACTERS}
            )
        return stops

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatBody(GenerationBody):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None  # the newer name, wins over the older


class CompletionBody(GenerationBody):
    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts_of)]


BodyT = TypeVar("BodyT", bound=GenerationBody)


def parse_body(kind: type[BodyT], raw: bytes) -> BodyT:
    """Return the checked body. Raises InvalidRequestError naming the field.

    Read from the bytes, whatever Content-Type says: a curl without the header should work, and the
    parser bounds nesting, refuses NaN and lone surrogates, and never keeps a value in its message.
    """
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _first_problem(error) from None  # the cause holds the client's text
    _refuse_unsupported(body)
    return body


def _first_problem(error: ValidationError) -> InvalidRequestError:
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if detail["type"] == "json_invalid":
        return InvalidRequestError(f"the body is not JSON: {detail['msg'].removeprefix('Invalid JSON: ')}")
    param = _path(detail["loc"])
    if not param:
        return InvalidRequestError("the body must be a JSON object")
    if detail["type"] == "missing":
        return InvalidRequestError(f"{param} is missing", param)
    return InvalidRequestError(f"{param}: {detail['msg'][0].lower()}{detail['msg'][1:]}", param)


def _path(location: tuple[int | str, ...]) -> str:
    """Return ('messages', 0, 'role') as messages[0].role."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _refuse_unsupported(body: GenerationBody) -> None:
    sent: dict[str, Any] = body.model_extra or {}
    for name, neutral in _NEUTRAL.items():
        if sent.get(name) not in neutral:
            raise UnsupportedFieldError(f"{name} is not supported yet", name)
    # Tools that may not be called ask for nothing; any others could have changed the answer.
    if sent.get("tools") and sent.get("tool_choice") != "none":
        raise UnsupportedFieldError("tools are not supported yet", "tools")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options is only allowed with stream", "stream_options")
    if isinstance(body, ChatBody):
        _check_messages(body.messages)


def _check_messages(messages: list[ChatMessage]) -> None:
    for index, message in enumerate(messages):
        if (message.model_extra or {}).get("tool_calls"):
            name = f"messages[{index}].tool_calls"
            raise UnsupportedFieldError(f"{name} is not supported yet", name)
        if message.content is None and message.role != "assistant":  # a model may have said nothing
            raise InvalidRequestError(f"messages[{index}].content is missing", f"messages[{index}].content")
