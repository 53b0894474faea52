"""How much of the time each stage computed, for `/metrics` and for whoever asks whether the pipeline is full.

A share needs two sound figures of one clock: when a stage began a step and when it finished it. The window of a
stage ends with its last step: a server without work keeps the shares that it last had.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from butterfly.specs import StageTiming

DEFAULT_WINDOW_S = 30.0  # smooths over prompts and bursts, and still shows a change while somebody watches
MAX_STEPS = 8192  # per stage, in 1 MB; with faster steps than 4 ms the window is shorter


class BusyShare:
    """Remembers when each stage computed, over the last `window_s` seconds of the stage's own clock.

    A change of the stages (a new plan) starts afresh, and so does one stage whose clock went backwards (its process
    is another one). Told in one thread, asked in any.
    """

    def __init__(self, window_s: float = DEFAULT_WINDOW_S, max_steps: int = MAX_STEPS) -> None:
        self._window_s, self._max_steps = window_s, max_steps
        self._lock = threading.Lock()
        self._workers: tuple[str, ...] = ()
        self._stages: tuple[_Stage, ...] = ()

    def record(self, timings: Sequence[StageTiming]) -> None:
        """Add one finished step, whatever it held. The steps of a stage come in order; no timings change nothing."""
        if not timings:
            return
        workers = tuple(timing.worker for timing in timings)
        with self._lock:
            if workers != self._workers:
                self._workers = workers
                self._stages = tuple(_Stage(self._window_s, self._max_steps) for _ in workers)
            for stage, timing in zip(self._stages, timings, strict=True):
                stage.add(timing.started_s, timing.finished_s)

    def summary(self) -> tuple[tuple[str, float], ...]:
        """Return (worker, share of the window it computed, 0 to 1) in pipeline order; empty before the first step."""
        with self._lock:
            return tuple((worker, stage.share()) for worker, stage in zip(self._workers, self._stages, strict=True))


class _Stage:
    """The intervals in which one stage computed: in order, without overlap, the latest within the window."""

    def __init__(self, window_s: float, max_steps: int) -> None:
        self._window_s, self._max_steps = window_s, max_steps
        self._intervals: deque[tuple[float, float]] = deque()
        self._known_since_s = 0.0  # from here on no interval is missing

    def add(self, started_s: float, finished_s: float) -> None:
        if self._intervals and finished_s < self._intervals[-1][1]:
            self._intervals.clear()
        if self._intervals:
            started_s = max(started_s, self._intervals[-1][1])  # time spent on two steps at once counts once
        else:
            self._known_since_s = started_s
        self._intervals.append((started_s, finished_s))
        while self._intervals[0][1] < finished_s - self._window_s or len(self._intervals) > self._max_steps:
            self._known_since_s = self._intervals.popleft()[1]

    def share(self) -> float:
        end_s = self._intervals[-1][1]
        begin_s = max(self._known_since_s, end_s - self._window_s)
        busy_s = sum(finished_s - max(started_s, begin_s) for started_s, finished_s in self._intervals)
        return min(1.0, busy_s / (end_s - begin_s)) if end_s > begin_s else 0.0
