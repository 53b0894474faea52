"""The engine requests of one HTTP call, in flight together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from butterfly.api.building import Job
from butterfly.api.choices import Choice, ChoiceEvent
from butterfly.api.interfaces import EngineClient, Tokenizer
from butterfly.errors import RequestFailedError
from butterfly.specs import Request, RequestOutput


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended a choice that was under way. Any exception: one of a bug must reach the client too."""

    error: BaseException


class Generation:
    """Submits the requests of a job, merges their outputs, and owns them until `close`.

    Whoever calls `start` must call `close`, whatever happened: it aborts what has not ended.
    """

    def __init__(self, engine: EngineClient, tokenizer: Tokenizer, job: Job) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._job = job
        self._open: set[str] = set()  # ids the engine may be working on
        self._pumps: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[ChoiceEvent | asyncio.Task[None]] = asyncio.Queue()
        self._num_running = 0
        self._num_output_tokens = [0] * len(job.requests)  # up to the last event that was read
        self._num_cached_tokens = [0] * len(job.requests)

    @property
    def num_prompt_tokens(self) -> int:
        return self._job.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        """Of all choices, up to the last event that was read."""
        return sum(self._num_output_tokens)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were not computed for the first choice of their prompt: the others share with it."""
        return sum(self._num_cached_tokens[:: self._job.num_choices_per_prompt])

    @property
    def num_choices(self) -> int:
        return len(self._job.requests)

    async def start(self) -> None:
        """Submit every request, or raise what the engine says to one of them."""
        for index, request in enumerate(self._job.requests):
            # Marked before it is submitted: a client may leave while the engine decides.
            self._open.add(request.request_id)
            outputs = await self._engine.submit(request)
            pump = asyncio.create_task(self._pump(index, request, outputs))
            pump.add_done_callback(self._events.put_nowait)
            self._pumps.append(pump)
            self._num_running += 1

    async def next_event(self) -> ChoiceEvent | Failure | None:
        """Return what happens next to any choice; None once all have finished. Nothing follows a Failure."""
        while self._num_running:
            event = await self._events.get()
            if not isinstance(event, asyncio.Task):
                self._num_output_tokens[event.index] = event.num_tokens
                return event
            self._num_running -= 1
            if (error := event.exception()) is not None:
                return Failure(error)
        return None

    async def close(self) -> None:
        """Abort what has not ended and release everything. Idempotent."""
        for request_id in sorted(self._open):
            self._engine.abort(request_id)
        self._open.clear()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _pump(self, index: int, request: Request, outputs: AsyncIterator[RequestOutput]) -> None:
        try:
            await self._read(index, request, outputs)
        finally:
            if isinstance(outputs, AsyncGenerator):
                await outputs.aclose()

    async def _read(self, index: int, request: Request, outputs: AsyncIterator[RequestOutput]) -> None:
        choice = self._choice(index, request)
        async for output in outputs:
            if output.finish_reason is not None:
                self._open.discard(request.request_id)
            self._num_cached_tokens[index] = max(self._num_cached_tokens[index], output.num_cached_tokens)
            event = choice.advance(output)
            self._events.put_nowait(event)
            if event.finish_reason is not None:
                self._abort_if_open(request.request_id)
                return
        raise RequestFailedError("the engine ended the request without a reason", request.request_id)

    def _choice(self, index: int, request: Request) -> Choice:
        job = self._job
        return Choice(
            index,
            request,
            self._tokenizer.stream(job.skips_special_tokens),
            job.stops,
            keeps_stop=job.keeps_stop,
            silent_token_ids=job.silent_token_ids,
            is_prompt_only=job.is_prompt_only,
        )

    def _abort_if_open(self, request_id: str) -> None:
        """A stop string ends a choice before the engine knows."""
        if request_id in self._open:
            self._open.discard(request_id)
            self._engine.abort(request_id)
