"""Outputs on their way from the coordinator's thread to whoever awaits them on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from butterfly.scheduling import TokenMatcher
from butterfly.specs import Request, RequestOutput


class RequestStream:
    """One accepted request: its outputs, and the times from which TTFT and TPOT follow.

    Made on the event loop; `accept`, `refuse` and `put` are called from the coordinator's thread.
    """

    def __init__(
        self,
        request: Request,
        loop: asyncio.AbstractEventLoop,
        now_s: float,
        matcher: TokenMatcher | None = None,
    ) -> None:
        self.request, self.matcher = request, matcher
        self.submitted_s = now_s
        self.first_token_s: float | None = None
        self._loop = loop
        self._accepted: asyncio.Future[None] = loop.create_future()
        self._outputs: asyncio.Queue[RequestOutput] = asyncio.Queue()

    async def wait_accepted(self) -> None:
        """Return when the scheduler took the request; raise what it refused it with."""
        await self._accepted

    async def outputs(self) -> AsyncIterator[RequestOutput]:
        """Yield outputs up to and including the one with a finish reason."""
        while True:
            output = await self._outputs.get()
            yield output
            if output.finish_reason is not None:
                return

    def accept(self) -> None:
        self._call(self._settle, None)

    def refuse(self, error: Exception) -> None:
        self._call(self._settle, error)

    def put(self, output: RequestOutput, now_s: float) -> None:
        if output.token_ids and self.first_token_s is None:
            self.first_token_s = now_s
        self._call(self._outputs.put_nowait, output)

    def tpot_s(self, num_output_tokens: int, now_s: float) -> float | None:
        """Mean time per output token after the first, None before the second."""
        if self.first_token_s is None or num_output_tokens < 2:
            return None
        return (now_s - self.first_token_s) / (num_output_tokens - 1)

    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.submitted_s

    def _settle(self, error: Exception | None) -> None:
        if self._accepted.done():  # the submitter was cancelled meanwhile
            return
        if error is None:
            self._accepted.set_result(None)
        else:
            self._accepted.set_exception(error)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop was closed: its owner was interrupted, and nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)
