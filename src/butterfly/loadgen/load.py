"""A run: first contact, warm-up, and the requests in a closed or an open loop."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import msgspec

from butterfly.loadgen.arrivals import poisson_arrivals
from butterfly.loadgen.asking import ask, open_client
from butterfly.loadgen.dialect import Dialect, make_prompt, request_body
from butterfly.loadgen.first_contact import Prober, find_model, path_of
from butterfly.loadgen.report import LoadReport, make_report
from butterfly.loadgen.spec import LoadSpec, RequestRecord, check

Progress = Callable[[int, int], None]  # requests that have ended, requests in all
_SEED_BITS = 32


async def run_load(
    spec: LoadSpec,
    on_progress: Progress,
    *,
    stop: asyncio.Event | None = None,
    trust: ssl.SSLContext | None = None,
) -> LoadReport:
    """Measure the server. `stop` ends the run early: the report then holds what had ended by then.

    `trust`: whom to trust for https; None: as usual. Raises ConfigError where nothing can be measured.
    """
    check(spec)
    seed = secrets.randbits(_SEED_BITS) if spec.seed is None else spec.seed
    num_warmup = (spec.concurrency or 1) if spec.num_warmup is None else spec.num_warmup
    spec = msgspec.structs.replace(spec, seed=seed, num_warmup=num_warmup)
    async with open_client(spec, trust) as client:
        run = _Run(client, spec, seed, num_warmup, on_progress)
        is_complete = await _unless_stopped(run.measure(), stop or asyncio.Event())
    return run.report(is_complete=is_complete)


class _Run:
    """What is learnt of a server, and the records so far: they outlive a run that is stopped."""

    def __init__(
        self, client: httpx.AsyncClient, spec: LoadSpec, seed: int, num_warmup: int, on_progress: Progress
    ) -> None:
        self._client = client
        self._spec = spec
        self._seed = seed
        self._num_warmup = num_warmup
        self._on_progress = on_progress
        self._dialect = Dialect()
        self._notes: list[str] = []
        self._records: list[RequestRecord] = []
        self._start_s = self._last_end_s = 0.0

    async def measure(self) -> None:
        """Raises ConfigError; requests that fail are records like others."""
        spec = self._spec
        model = await find_model(self._client, spec)
        self._spec = spec = msgspec.structs.replace(spec, model=model)
        end_of_warmup = spec.num_requests + self._num_warmup
        self._dialect, self._notes = await Prober(self._client, spec, self._seed, end_of_warmup).agree()
        width = spec.concurrency or 1
        await _side_by_side(width, self._send, iter(range(spec.num_requests, end_of_warmup)))
        self._start_s = self._last_end_s = time.perf_counter()
        if spec.rate_per_s is None:
            await _side_by_side(width, self._count, iter(range(spec.num_requests)))
        else:
            await self._as_they_arrive(poisson_arrivals(spec.num_requests, spec.rate_per_s, self._seed))

    async def _as_they_arrive(self, arrivals_s: list[float]) -> None:
        async with asyncio.TaskGroup() as group:
            for index, arrival_s in enumerate(arrivals_s):
                due_s = self._start_s + arrival_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                group.create_task(self._count(index, due_s))

    async def _count(self, index: int, due_s: float | None = None) -> None:
        self._records.append(await self._send(index, due_s))
        self._last_end_s = time.perf_counter()
        self._on_progress(len(self._records), self._spec.num_requests)

    async def _send(self, index: int, due_s: float | None = None) -> RequestRecord:
        spec = self._spec
        prompt = make_prompt(spec, self._dialect, self._seed, index)
        body = request_body(spec, self._dialect, prompt, spec.num_output_tokens)
        asked = await ask(self._client, path_of(spec), body, spec.timeout_s)
        lag_s = 0.0 if due_s is None else asked.sent_s - due_s
        return asked.answer.record(
            index, asked.sent_s, self._start_s, spec.num_input_tokens, lag_s=lag_s, failure=asked.failure
        )

    def report(self, *, is_complete: bool) -> LoadReport:
        duration_s = self._last_end_s - self._start_s
        return make_report(self._spec, self._records, duration_s, self._notes, is_complete=is_complete)


async def _side_by_side(width: int, work: Callable[[int], Coroutine[Any, Any, object]], indices: Iterator[int]) -> None:
    """Do `work` on each index, `width` at a time: whoever is done takes the next at once."""

    async def worker() -> None:
        for index in indices:
            await work(index)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(worker())


async def _unless_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Whether `work` ended before `stop` was set; else it is cancelled. Raises what it raises."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
