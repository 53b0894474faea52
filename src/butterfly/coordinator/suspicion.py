"""Which worker to give up when steps do not come back: from how late they are, and when each worker was last heard.

Silence alone is judged by the cluster state, after seconds. Here two signs come together: a step is later than any
prediction explains, and a worker that should be computing it has missed beats. That is enough to act much earlier.
How many beats must be missing follows from how regularly a worker's beats have come: over a bad link they are late too.
A worker that beats but hands nothing on is waited for longer, since a slow machine looks the same for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from butterfly.specs import Spec

_REMEMBERED_BEATS = 40


class Patience(Spec, frozen=True):
    """How late a step may be: seconds, and multiples of what it was expected to take; the longer of both."""

    late_s: float = 0.6
    late_factor: float = 3.0  # loaded machines took up to so many times the prediction
    missed_beats_s: float = 0.8  # of silence: three beats and a bit
    missed_gaps: float = 3.0  # of silence: in longest gaps between two beats of the last ten seconds
    stuck_s: float = 15.0
    stuck_factor: float = 30.0
    most_s: float = 300.0  # and never longer than this


class Vital(NamedTuple):
    """What was last heard of a worker, on the coordinator's clock."""

    heard_s: float
    last_step_id: int  # the newest step that it has handed on
    longest_gap_s: float = 0.0  # between two of its last beats


class Suspect(NamedTuple):
    worker: str
    reason: str  # to follow its name


class LateStep(NamedTuple):
    """The step that should come back next."""

    step_id: int
    stalled_s: float  # since steps last made progress
    expected_s: float  # what it was predicted to take in all


def find_suspect(
    stages: Sequence[str], vitals: Mapping[str, Vital], now_s: float, step: LateStep, patience: Patience
) -> Suspect | None:
    """Whom to give up, or None while waiting is right. `stages`: workers in pipeline order, all with vitals."""
    if step.stalled_s > max(patience.late_s, patience.late_factor * step.expected_s):
        quietest = min(stages, key=lambda worker: vitals[worker].heard_s)
        silent_s = now_s - vitals[quietest].heard_s
        if silent_s > max(patience.missed_beats_s, patience.missed_gaps * vitals[quietest].longest_gap_s):
            return Suspect(quietest, f"was silent for {silent_s:.1f} s while a step was {step.stalled_s:.1f} s late")
    if step.stalled_s > min(patience.most_s, max(patience.stuck_s, patience.stuck_factor * step.expected_s)):
        # It is with the first stage that has not handed it on, or on the way there.
        stuck = next((worker for worker in stages if vitals[worker].last_step_id < step.step_id), stages[-1])
        return Suspect(stuck, f"did not hand on a step for {step.stalled_s:.0f} s, though it lives")
    return None


class Watch:
    """The vitals of all workers, and the verdict. Used on the coordinator's thread."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._vitals: dict[str, Vital] = {}
        self._gaps_s: dict[str, deque[float]] = {}

    def hear(self, worker: str, now_s: float, last_step_id: int = 0) -> None:
        gaps_s = self._gaps_s.setdefault(worker, deque(maxlen=_REMEMBERED_BEATS))
        if (before := self._vitals.get(worker)) is not None:
            gaps_s.append(now_s - before.heard_s)
        self._vitals[worker] = Vital(now_s, last_step_id, max(gaps_s, default=0.0))

    def forget(self, worker: str) -> None:
        self._vitals.pop(worker, None)
        self._gaps_s.pop(worker, None)

    def suspect(self, stages: Sequence[str], now_s: float, step: LateStep) -> Suspect | None:
        """As `find_suspect`; workers that were never heard of count as heard now."""
        vitals = {worker: self._vitals.get(worker, Vital(now_s, 0)) for worker in stages}
        return find_suspect(stages, vitals, now_s, step, self._patience)
