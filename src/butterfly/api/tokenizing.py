"""The tokenizer by itself: vLLM's routes /tokenize, /detokenize and /tokenizer_info.

Clients that score texts (lm-evaluation-harness) or count tokens then need no copy of the tokenizer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import JsonValue

from butterfly.api.bodies import parse_body
from butterfly.api.building import check_model
from butterfly.api.chat_messages import ChatMessage
from butterfly.api.endpoints import read_body
from butterfly.api.interfaces import ServedModel
from butterfly.api.openapi import described
from butterfly.api.problems import json_response
from butterfly.api.prompts import chat_prompt, check_token_ids, encode
from butterfly.api.token_bodies import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
    TokenizerInfo,
)
from butterfly.api.token_texts import spelled
from butterfly.errors import InvalidRequestError

T = TypeVar("T")

_PROBLEMS = (400, 404, 413)
_MANY_TOKENS = 4096  # take some milliseconds to spell, during which every stream would stand still


def add_tokenizing_routes(app: FastAPI, model: ServedModel) -> None:
    """Add the three routes for the tokenizer and the chat template of `model`."""
    tokenize_route = described(
        "Turn a text or a chat into tokens.", body=TokenizeBody, answer=TokenizeAnswer, problems=_PROBLEMS
    )

    @app.post("/tokenize", **tokenize_route)
    async def tokenize(request: Request) -> Response:
        body = parse_body(TokenizeBody, await read_body(request))
        if body.model is not None:
            check_model(model, body.model)
        tokens = await _tokens_of(model, body)
        texts = await _aside(tokens, lambda: _texts_of(model, tokens)) if body.return_token_strs else None
        answer = TokenizeAnswer(count=len(tokens), max_model_len=model.max_context, tokens=tokens, token_strs=texts)
        return json_response(answer)

    detokenize_route = described(
        "Turn tokens into text.", body=DetokenizeBody, answer=DetokenizeAnswer, problems=_PROBLEMS
    )

    @app.post("/detokenize", **detokenize_route)
    async def detokenize(request: Request) -> Response:
        body = parse_body(DetokenizeBody, await read_body(request))
        if body.model is not None:
            check_model(model, body.model)
        check_token_ids(model, body.tokens, "tokens")
        text = await _aside(body.tokens, lambda: model.tokenizer.decode(body.tokens, skip_special_tokens=False))
        return json_response(DetokenizeAnswer(prompt=text))

    info = _info_of(model)

    @app.get("/tokenizer_info", **described("Describe the tokenizer.", answer=TokenizerInfo))
    async def tokenizer_info() -> Response:
        return json_response(info)


@dataclass(frozen=True, slots=True)
class _Chat:
    """The fields of a body that make a prompt out of messages."""

    messages: Sequence[ChatMessage]
    add_special_tokens: bool | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, JsonValue] | None


async def _tokens_of(model: ServedModel, body: TokenizeBody) -> list[int]:
    if body.messages is None:
        return await encode(model.tokenizer, body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    if model.chat_template is None:
        raise InvalidRequestError(f"'{model.id}' has no chat template; send a prompt", "messages")
    chat = _Chat(
        messages=body.messages,
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return await chat_prompt(model, model.chat_template, chat, [tool.for_template() for tool in body.tools or []])


def _texts_of(model: ServedModel, tokens: Sequence[int]) -> list[str]:
    return [spelled(model.tokenizer.token_bytes(token_id)) for token_id in tokens]


async def _aside(tokens: Sequence[int], work: Callable[[], T]) -> T:
    """Return what `work` on `tokens` returns, out of the way of other calls where it takes long."""
    return work() if len(tokens) < _MANY_TOKENS else await asyncio.to_thread(work)


def _info_of(model: ServedModel) -> TokenizerInfo:
    return TokenizerInfo(
        tokenizer_class="PreTrainedTokenizerFast",  # what loads it from its files elsewhere
        vocab_size=model.tokenizer.vocab_size,
        model_max_length=model.max_context,
        bos_token=model.bos_token or None,
        eos_token=model.eos_token or None,
        pad_token=model.eos_token or None,
        chat_template=None if model.chat_template is None else model.chat_template.source,
    )
