"""From the messages or prompts of a body to the token ids of a prompt."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import JsonValue

from butterfly.api.chat_messages import ChatMessage
from butterfly.api.interfaces import ChatTemplate, ServedModel, Tokenizer
from butterfly.errors import InvalidRequestError

# A text this long takes some ten milliseconds to encode, during which every stream would stand still.
_LONG_TEXT_CHARACTERS = 16_384


class ChatFields(Protocol):
    """The fields of a body that make a prompt out of messages."""

    @property
    def messages(self) -> Sequence[ChatMessage]: ...

    @property
    def add_special_tokens(self) -> bool | None: ...

    @property
    def add_generation_prompt(self) -> bool | None: ...

    @property
    def continue_final_message(self) -> bool | None: ...

    @property
    def chat_template_kwargs(self) -> Mapping[str, JsonValue] | None: ...


async def chat_prompt(
    model: ServedModel, template: ChatTemplate, body: ChatFields, tools: list[dict[str, Any]]
) -> list[int]:
    """Return the prompt that the template makes of the messages. Raises InvalidRequestError."""
    text = _render(template, body, tools)
    # The template writes the special tokens itself.
    return _some(await encode(model.tokenizer, text, add_special_tokens=bool(body.add_special_tokens)), "messages")


async def text_prompt(model: ServedModel, text: str, *, add_special_tokens: bool) -> list[int]:
    """Return the tokens of `text`. Raises InvalidRequestError when there are none."""
    return _some(await encode(model.tokenizer, text, add_special_tokens=add_special_tokens), "prompt")


def token_prompt(model: ServedModel, token_ids: list[int]) -> list[int]:
    """Return `token_ids`. Raises InvalidRequestError when there are none, or some that are no token's."""
    check_token_ids(model, token_ids, "prompt")
    return _some(token_ids, "prompt")


def check_token_ids(model: ServedModel, token_ids: Iterable[int], param: str) -> None:
    """Raises InvalidRequestError for an id outside the vocabulary."""
    size = model.tokenizer.vocab_size
    unknown = next((token_id for token_id in token_ids if not 0 <= token_id < size), None)
    if unknown is not None:
        raise InvalidRequestError(f"{param}: {unknown} is not a token id; they go from 0 to {size - 1}", param)


def _some(token_ids: list[int], param: str) -> list[int]:
    if not token_ids:
        raise InvalidRequestError(f"{param}: must have at least one token", param)
    return token_ids


def _render(template: ChatTemplate, body: ChatFields, tools: list[dict[str, Any]]) -> str:
    messages = [message.for_template() for message in body.messages]
    variables = {**(body.chat_template_kwargs or {}), **({"tools": tools} if tools else {})}
    if not body.continue_final_message:
        is_new_turn = body.add_generation_prompt is not False
        return template.render(messages, add_generation_prompt=is_new_turn, **variables)
    # What a template writes behind a message depends on the model: a mark in its text shows where that begins.
    mark = uuid.uuid4().hex
    messages[-1]["content"] += mark
    text = template.render(messages, add_generation_prompt=False, **variables)
    before, found, _ = text.rpartition(mark)
    if not found:
        raise InvalidRequestError(
            "continue_final_message: the model's chat template does not show the last message",
            "continue_final_message",
        )
    return before


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Return the tokens of `text`, perhaps none, out of the way of other calls where it takes long."""
    if len(text) < _LONG_TEXT_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
