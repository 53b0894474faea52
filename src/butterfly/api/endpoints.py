"""The two endpoints that generate: what tells them apart, and the one way that both go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from butterfly.api.answering import StreamedAnswer, UsageWish, unless_disconnected, whole_answer
from butterfly.api.bodies import AnyBody, BodyT, ChatBody, CompletionBody, parse_body
from butterfly.api.building import Call, Job, chat_job, completion_job
from butterfly.api.chat_format import ChatFormat
from butterfly.api.completion_format import CompletionFormat
from butterfly.api.formats import Format, Head
from butterfly.api.generation import Generation
from butterfly.api.interfaces import EngineClient, ServedModel, Tokenizer
from butterfly.api.problems import CLIENT_LEFT

MAX_BODY_BYTES = 16 * 1024 * 1024  # some four million tokens of text, more than any context


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[BodyT]):
    id_prefix: str
    body: type[BodyT]
    job: Callable[[ServedModel, BodyT, Call], Awaitable[Job]]
    format: Callable[[Head, Job, Tokenizer], Format]


CHAT = Endpoint("chatcmpl-", ChatBody, chat_job, ChatFormat)
COMPLETIONS = Endpoint("cmpl-", CompletionBody, completion_job, CompletionFormat)


@dataclass(frozen=True, slots=True)
class Service:
    """Answers calls for one model."""

    engine: EngineClient
    model: ServedModel
    default_timeout_s: float | None = None

    async def answer(self, endpoint: Endpoint[BodyT], request: Request) -> Response:
        """Return the answer to `request`. Raises the errors that `problems` knows."""
        body = parse_body(endpoint.body, await read_body(request))
        answer = self._generate(endpoint, body, request)
        # A client that has left reads nothing: any response will do.
        return await unless_disconnected(request.receive, answer) or Response(status_code=CLIENT_LEFT)

    async def _generate(self, endpoint: Endpoint[BodyT], body: BodyT, request: Request) -> Response:
        head = Head.new(endpoint.id_prefix, self.model.id)
        tenant = request.scope.get("butterfly.tenant", "")
        call = Call(answer_id=head.id, tenant=tenant, default_timeout_s=self.default_timeout_s)
        job = await endpoint.job(self.model, body, call)
        format = endpoint.format(head, job, self.model.tokenizer)
        generation = Generation(self.engine, self.model.tokenizer, job)
        is_handed_over = False
        try:
            await generation.start()
            if not body.stream:
                return await whole_answer(generation, format)
            answer = StreamedAnswer(generation, format, request.scope["butterfly.call_id"], _usage_wish(body))
            is_handed_over = True
            return answer
        finally:
            if not is_handed_over:
                await generation.close()


def _usage_wish(body: AnyBody) -> UsageWish:
    options = body.stream_options
    if options is None or not options.include_usage:
        return "none"
    return "every chunk" if options.continuous_usage_stats else "last chunk"


async def read_body(request: Request) -> bytes:
    """Return the body. Raises HTTPException 413 without reading on, so that memory stays bounded."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the request body is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)
