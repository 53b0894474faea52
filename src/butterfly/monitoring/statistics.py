"""Medians over the last steps, for `--stats` and `/status`.

Medians, because one garbage collection or one scheduler hiccup in a thousand steps moves a mean but says
nothing about the software; a bounded window, because a server runs for months.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from butterfly.monitoring.timings import compute_s, sent_bytes, software_s_per_hop
from butterfly.specs import MeasuredSpeed, Spec, StageSpeed, StageTiming

DEFAULT_WINDOW = 1024  # steps; enough for a stable median, 8 KiB per figure
LONE_WINDOW = 64  # tokens of lone streams: few enough that their contexts are much the same


class StageSummary(Spec, frozen=True):
    worker: str
    compute_s: float  # median


class StepSummary(Spec, frozen=True):
    """Medians over the window. All zero when no step has been recorded."""

    num_steps: int  # in the window
    total_s: float
    software_s_per_hop: float
    sent_bytes: int
    stages: tuple[StageSummary, ...]  # in pipeline order


class _LoneStep(NamedTuple):
    total_s: float
    compute_s: tuple[float, ...]
    context: int


class StepStatistics:
    """Remembers the last `window` steps of one pipeline, and the last few of streams that ran alone.

    A change of the stages (a new plan) starts the window afresh: medians over two pipelines describe
    neither. The caller chooses which steps to record; decode steps alone give the figures of a token.
    """

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._restart(())

    def record(self, timings: Sequence[StageTiming], total_s: float, lone_context: int | None = None) -> None:
        """Add one finished step. `total_s` is its duration on the coordinator's clock.

        `lone_context`: nothing else was in flight, and it was one generated token of a sequence with so many before.
        """
        workers = tuple(timing.worker for timing in timings)
        with self._lock:
            if workers != self._workers:
                self._restart(workers)
            self._totals_s.append(total_s)
            self._software_s.append(software_s_per_hop(timings, total_s))
            self._sent_bytes.append(sent_bytes(timings))
            for seconds, timing in zip(self._compute_s, timings, strict=True):
                seconds.append(compute_s(timing))
            if lone_context is not None:
                self._lone.append(_LoneStep(total_s, tuple(map(compute_s, timings)), lone_context))

    def summary(self) -> StepSummary:
        """Return the medians over the window."""
        with self._lock:
            stages = zip(self._workers, self._compute_s, strict=True)
            return StepSummary(
                num_steps=len(self._totals_s),
                total_s=_median(self._totals_s),
                software_s_per_hop=_median(self._software_s),
                sent_bytes=round(_median(self._sent_bytes)),
                stages=tuple(StageSummary(worker=name, compute_s=_median(times)) for name, times in stages),
            )

    def lone_stream(self) -> MeasuredSpeed | None:
        """Return what a token takes while nothing else runs; None before the first."""
        with self._lock:
            if not self._lone:
                return None
            by_stage = zip(self._workers, zip(*(step.compute_s for step in self._lone), strict=True), strict=True)
            return MeasuredSpeed(
                num_steps=len(self._lone),
                context=round(fmean(step.context for step in self._lone)),
                tpot_s=_median([step.total_s for step in self._lone]),
                stages=tuple(StageSpeed(worker=name, compute_s=_median(times)) for name, times in by_stage),
            )

    def _restart(self, workers: tuple[str, ...]) -> None:
        self._workers = workers
        self._totals_s: deque[float] = deque(maxlen=self._window)
        self._software_s: deque[float] = deque(maxlen=self._window)
        self._sent_bytes: deque[int] = deque(maxlen=self._window)
        self._lone: deque[_LoneStep] = deque(maxlen=LONE_WINDOW)
        self._compute_s: tuple[deque[float], ...] = tuple(deque(maxlen=self._window) for _ in workers)


def _median(values: Sequence[float]) -> float:
    return float(median(values)) if values else 0.0
