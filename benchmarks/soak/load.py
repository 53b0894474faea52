"""Streams without end: one to four at a time, each with the text that it has when nothing happens."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from benchmarks.bench import tell
from benchmarks.faults.running import Cluster, Stream
from benchmarks.processes import ServerFailedError
from benchmarks.soak.record import Load

_MOST_AT_ONCE = 4
_MOST_NOTES = 10


class LoadThread:
    """Asks while the block lasts, and to the end of what was asked last."""

    def __init__(self, on: Cluster, prompts: Sequence[str], expected: Sequence[str], seed: int) -> None:
        self._on, self._prompts, self._expected = on, prompts, expected
        self._chance = random.Random(seed)
        self._is_over = threading.Event()
        self._executor = ThreadPoolExecutor(1, "load")
        self._running: Future[None] | None = None
        self.load = Load()

    def __enter__(self) -> Self:
        self._running = self._executor.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._executor.shutdown()
        if error is None and self._running is not None:
            self._running.result()  # raises what ended it early

    def _run(self) -> None:
        while not self._is_over.is_set():
            numbers = self._chance.sample(range(len(self._prompts)), self._chance.randint(1, _MOST_AT_ONCE))
            try:
                streams = self._on.ask([self._prompts[number] for number in numbers], lambda: None)
            except ServerFailedError as error:
                self.load = with_silence(self.load, len(numbers), str(error))
                tell(f"    streams: {error}")
                continue
            before, self.load = self.load, with_streams(self.load, streams, [self._expected[n] for n in numbers])
            for note in self.load.notes[len(before.notes) :]:
                tell(f"    LOST: {note}")


def with_silence(load: Load, num_streams: int, reason: str) -> Load:
    """Add streams of which nothing came back."""
    return replace(
        load,
        num_streams=load.num_streams + num_streams,
        num_failed=load.num_failed + num_streams,
        notes=(*load.notes, reason)[:_MOST_NOTES],
    )


def with_streams(load: Load, streams: Sequence[Stream], expected: Sequence[str]) -> Load:
    """Add streams that ended, in the order of what was expected of them; one that is missing has failed."""
    if len(streams) != len(expected):
        return with_silence(load, len(expected), f"{len(expected)} streams asked for, {len(streams)} answered")
    pairs = list(zip(streams, expected, strict=True))
    changed = [one for one, text in pairs if not one.error and one.text != text]
    failed = [one.error for one in streams if one.error]
    pauses_s = [b - a for one in streams for a, b in pairwise(one.times_s)]
    notes = (*load.notes, *failed, *(f"changed: {one.text[:200]!r}" for one in changed))
    return replace(
        load,
        num_streams=load.num_streams + len(streams),
        num_changed=load.num_changed + len(changed),
        num_failed=load.num_failed + len(failed),
        num_tokens=load.num_tokens + sum(len(one.times_s) for one in streams),
        longest_pause_s=max([load.longest_pause_s, *pauses_s]),
        notes=notes[:_MOST_NOTES],
    )
