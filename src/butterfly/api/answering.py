"""From a generation to the HTTP answer: one JSON body, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

import msgspec
from fastapi import Response
from msgspec import UNSET
from starlette.types import Receive, Scope, Send

from butterfly.api.choices import ChoiceEvent
from butterfly.api.formats import ChunkUsage, Format, usage_of
from butterfly.api.generation import Failure, Generation
from butterfly.api.problems import json_response, log_unexpected, problem_of
from butterfly.api.shapes import Shape, Usage

T = TypeVar("T")

UsageWish = Literal["none", "last chunk", "every chunk"]

_DONE = b"data: [DONE]\n\n"


async def whole_answer(generation: Generation, format: Format) -> Response:
    """Return all choices at once. Raises what ended any of them, and leaves `close` to the caller."""
    events: list[list[ChoiceEvent]] = [[] for _ in range(generation.num_choices)]
    while (event := await generation.next_event()) is not None:
        if isinstance(event, Failure):
            raise event.error
        events[event.index].append(event)
    return json_response(format.whole(events, _usage(generation)))


def _usage(generation: Generation) -> Usage:
    return usage_of(generation.num_prompt_tokens, generation.num_output_tokens, generation.num_cached_tokens)


class StreamedAnswer(Response):
    """Sends events as the choices grow, and closes the generation however the stream ends.

    Starlette's StreamingResponse leaves a generator that is cut off between two chunks to the garbage
    collector; here the generation has an owner, so a client that leaves stops its requests at once.
    """

    def __init__(self, generation: Generation, format: Format, call_id: str, usage_wish: UsageWish) -> None:
        super().__init__(
            media_type="text/event-stream",
            # Proxies buffer unless told not to, and then a stream arrives in one piece.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._generation = generation
        self._format = format
        self._call_id = call_id
        self._usage_wish = usage_wish

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
            chunks = self._format.chunks(event, self._chunk_usage())
            await _send_body(send, b"".join(_event(chunk) for chunk in chunks))
        has_usage = self._usage_wish != "none"
        ending = _event(self._format.usage_chunk(_usage(self._generation))) if has_usage else b""
        await _send_body(send, ending + _DONE, last=True)

    def _chunk_usage(self) -> ChunkUsage:
        if self._usage_wish == "every chunk":
            return _usage(self._generation)
        # As OpenAI does: the key is there when the client has asked, its value in the last chunk.
        return None if self._usage_wish == "last chunk" else UNSET


async def _send_body(send: Send, body: bytes, *, last: bool = False) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": not last})


def _event(content: Shape) -> bytes:
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
