"""What a run leaves behind: each fault with what the clients saw of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal

from benchmarks.hardware import Machine
from butterfly.specs import Spec

FaultKind = Literal["kill", "stop", "cut"]
FAULTS: dict[FaultKind, str] = {
    "kill": "SIGKILL: the process is gone",
    "stop": "SIGSTOP: the process hangs, its connections live",
    "cut": "the node's cable is pulled: nothing comes, nobody is told",
}


class FaultRecord(Spec, frozen=True):
    """One fault. Times in seconds; None where the split is not known, or nobody had to wait."""

    kind: FaultKind
    worker: str
    phase: Literal["prefill", "decode", "idle"]  # of the streams at that moment
    num_streams: int
    has_spare: bool
    num_flips: int = 0  # streams whose text differs from the undisturbed one
    num_errors: int = 0  # streams that ended with an error
    note: str = ""  # the first error or flip
    pauses_s: tuple[float, ...] = ()  # from the fault to the next token after it was dealt with, of each stream
    later_pause_s: float | None = None  # the longest without a token after that, as when the worker comes back
    detection_s: float | None = None
    planning_s: float | None = None
    loading_s: float | None = None
    prefill_s: float | None = None


class FaultsRecord(Spec, frozen=True):
    created: str
    machine: Machine
    model: str
    faults: tuple[FaultRecord, ...]

    def of(self, matches: Callable[[FaultRecord], bool]) -> Sequence[FaultRecord]:
        return [fault for fault in self.faults if matches(fault)]


def middle(values: Sequence[float | None]) -> float | None:
    """The median of those that are known."""
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def worst(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
