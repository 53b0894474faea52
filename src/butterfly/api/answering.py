"""From a generation to the HTTP answer: one JSON body, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from butterfly.api.choices import ChoiceEvent, ClientReason
from butterfly.api.formats import Format, Json, usage_of
from butterfly.api.generation import Failure, Generation
from butterfly.api.problems import json_response, log_unexpected, problem_of

T = TypeVar("T")

_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every body and chunk of one answer has in common."""

    format: Format
    model_id: str
    id: str
    created: int

    @classmethod
    def new(cls, format: Format, model_id: str) -> Envelope:
        return cls(format, model_id, f"{format.id_prefix}{uuid.uuid4().hex}", int(time.time()))

    def whole(self, choices: list[Json], usage: Json) -> Json:
        return {**self._head(self.format.whole_object), "choices": choices, "usage": usage}

    def chunk(self, choices: list[Json]) -> Json:
        return {**self._head(self.format.chunk_object), "choices": choices}

    def _head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model_id,
            "system_fingerprint": None,
        }


@dataclass(slots=True)
class _Draft:
    texts: list[str] = field(default_factory=list)
    reason: ClientReason = "length"


async def whole_answer(generation: Generation, envelope: Envelope) -> Response:
    """Return all choices at once. Raises what ended any of them, and leaves `close` to the caller."""
    drafts = [_Draft() for _ in range(generation.num_choices)]
    while (event := await generation.next_event()) is not None:
        if isinstance(event, Failure):
            raise event.error
        drafts[event.index].texts.append(event.text)
        if event.finish_reason is not None:
            drafts[event.index].reason = event.finish_reason
    choices = [envelope.format.whole(index, "".join(draft.texts), draft.reason) for index, draft in enumerate(drafts)]
    usage = usage_of(generation.num_prompt_tokens, generation.num_output_tokens)
    return json_response(envelope.whole(choices, usage))


class StreamedAnswer(Response):
    """Sends events as the choices grow, and closes the generation however the stream ends.

    Starlette's StreamingResponse leaves a generator that is cut off between two chunks to the garbage
    collector; here the generation has an owner, so a client that leaves stops its requests at once.
    """

    def __init__(self, generation: Generation, envelope: Envelope, call_id: str, *, with_usage: bool) -> None:
        super().__init__(
            media_type="text/event-stream",
            # Proxies buffer unless told not to, and then a stream arrives in one piece.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._generation = generation
        self._envelope = envelope
        self._call_id = call_id
        self._with_usage = with_usage
        self._opened: set[int] = set()  # choices that have had their first chunk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send_all(send))
        finally:
            await self._generation.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while (event := await self._generation.next_event()) is not None:
            if isinstance(event, Failure):  # after the first byte only the stream itself can tell
                log_unexpected(event.error, self._call_id)
                await _send_body(send, _event(problem_of(event.error, self._call_id).body()) + _DONE, last=True)
                return
            await _send_body(send, b"".join(self._chunks(event)))
        usage = usage_of(self._generation.num_prompt_tokens, self._generation.num_output_tokens)
        ending = _event({**self._envelope.chunk([]), "usage": usage}) if self._with_usage else b""
        await _send_body(send, ending + _DONE, last=True)

    def _chunks(self, event: ChoiceEvent) -> Iterator[bytes]:
        index = event.index
        if index not in self._opened:
            # Sent with the first token, not before, so that a client's time to first chunk is honest.
            self._opened.add(index)
            if (opening := self._envelope.format.opening(index)) is not None:
                yield self._chunk(opening)
        if event.text:
            yield self._chunk(self._envelope.format.delta(index, event.text))
        if event.finish_reason is not None:
            yield self._chunk(self._envelope.format.closing(index, event.finish_reason))

    def _chunk(self, choice: Json) -> bytes:
        chunk = self._envelope.chunk([choice])
        if self._with_usage:
            chunk["usage"] = None  # as OpenAI does: the key is there, its value in the last chunk
        return _event(chunk)


async def _send_body(send: Send, body: bytes, *, last: bool = False) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": not last})


def _event(content: Json) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns, or cancel it and return None when the client leaves before.

    The request body must have been read: what `receive` says after that is that the client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_wait_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
