"""Prompts and conversations, in the forms that people write them, as token ids."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from butterfly.api.chat_messages import ChatMessage, check_messages
from butterfly.errors import ContextLengthError, InvalidRequestError
from butterfly.models import Model

PromptInput = str | Sequence[int]
"""A text, or token ids."""

Message = Mapping[str, object]
"""`role` and `content`, perhaps `name`, `tool_calls`, `tool_call_id`: OpenAI's form."""

Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready to run. `name` is what errors call it: `prompts[3]`."""

    name: str
    text: str | None  # None: it was given as token ids
    token_ids: tuple[int, ...]


def split_prompts(prompts: PromptInput | Sequence[PromptInput]) -> list[tuple[str, PromptInput]]:
    """Bring all forms to one: (what errors call it, prompt), in order. Raises InvalidRequestError."""
    if isinstance(prompts, str) or (_is_sequence(prompts) and prompts and all(_is_token(item) for item in prompts)):
        return [("prompt", prompts)]  # type: ignore[list-item]
    if not _is_sequence(prompts):
        raise InvalidRequestError(
            f"prompts: expected a text, token ids, or a list of them, got {type(prompts).__name__}", "prompts"
        )
    return [(f"prompts[{index}]", prompt) for index, prompt in enumerate(prompts)]  # type: ignore[misc]


def split_conversations(messages: Conversation | Sequence[Conversation]) -> list[tuple[str, Conversation]]:
    """One conversation, or a list of them: (what errors call it, messages). Raises InvalidRequestError."""
    if not _is_sequence(messages):
        raise InvalidRequestError(
            f"messages: expected a list of messages, or a list of such lists, got {type(messages).__name__}", "messages"
        )
    if messages and all(isinstance(message, Mapping) for message in messages):
        return [("messages", messages)]  # type: ignore[list-item]
    return [(f"messages[{index}]", talk) for index, talk in enumerate(messages)]  # type: ignore[misc]


def read_prompt(name: str, prompt: PromptInput, model: Model) -> Prompt:
    """Return the tokens of a prompt. Raises InvalidRequestError, ContextLengthError."""
    if isinstance(prompt, str):
        return _fitting(Prompt(name, prompt, tuple(model.tokenizer.encode(prompt))), model)
    if not _is_sequence(prompt) or not all(_is_token(token) for token in prompt):
        raise InvalidRequestError(f"{name}: expected a text or a list of token ids, got {prompt!r:.80}", "prompts")
    token_ids = tuple(int(token) for token in prompt)
    unknown = next((token for token in token_ids if not 0 <= token < model.spec.vocab_size), None)
    if unknown is not None:
        raise InvalidRequestError(
            f"{name}: {unknown} is not a token id; they go from 0 to {model.spec.vocab_size - 1}", "prompts"
        )
    return _fitting(Prompt(name, None, token_ids), model)


def read_conversation(
    name: str, messages: Conversation, tools: Sequence[Mapping[str, object]] | None, model: Model
) -> Prompt:
    """Return a conversation as its model wants to read it. Raises InvalidRequestError, ContextLengthError."""
    if model.chat_template is None:
        raise InvalidRequestError(f"{model.display_name} has no chat template; use generate()", "messages")
    text = model.chat_template.render(_for_template(name, messages), tools=list(tools) if tools else None)
    # The template writes the special tokens itself.
    return _fitting(Prompt(name, text, tuple(model.tokenizer.encode(text, add_special_tokens=False))), model)


def _for_template(name: str, messages: Conversation) -> list[dict[str, object]]:
    """The messages as the HTTP API would hand them to the template, so that both give the same prompt."""
    if not _is_sequence(messages) or not messages:
        raise InvalidRequestError(f"{name}: expected a list of at least one message", "messages")
    checked = [_message(f"{name}[{index}]", message) for index, message in enumerate(messages)]
    check_messages(checked)
    return [message.for_template() for message in checked]


def _message(name: str, message: Message) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{name}: expected a dict with `role` and `content`, got {message!r:.80}", "messages")
    try:
        return ChatMessage.model_validate(dict(message))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        raise InvalidRequestError(
            f"{name}{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}", "messages"
        ) from None


def _fitting(prompt: Prompt, model: Model) -> Prompt:
    num_tokens, room = len(prompt.token_ids), model.spec.max_context
    if not num_tokens:
        raise InvalidRequestError(f"{prompt.name}: must have at least one token", "prompts")
    if num_tokens >= room:
        raise ContextLengthError(
            f"{prompt.name}: it has {num_tokens} tokens, but the context of {room} tokens must hold it and at least "
            "one more; shorten it, or start with a larger context",
            "prompts",
        )
    return prompt


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_token(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
