"""What a soak leaves behind: what was done to the cluster, what the clients saw, what the processes held."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mode
from typing import Literal

from benchmarks.hardware import Machine
from benchmarks.soak.trend import Trend, trend, without_warm_up
from butterfly.specs import Spec

WARM_UP_SHARE = 0.2
HANDLES_ALLOWANCE = 3  # by so many a minimum may differ between quiet moments

EventKind = Literal["join", "drain", "terminate", "kill joined", "kill local"]
EVENTS: dict[EventKind, str] = {
    "join": "a worker joins by the join line: a new one, or one that was there, with its name and state folder",
    "drain": "`butterfly drain` lets a joined worker leave",
    "terminate": "SIGTERM to a joined worker",
    "kill joined": "SIGKILL to a joined worker, which stays dead",
    "kill local": "SIGKILL to a local worker, which the launcher starts again",
}

FIGURES = {
    "rss_bytes": "resident memory (RSS)",
    "pss_bytes": "its share of resident memory (PSS)",
    "uss_bytes": "memory of its own (USS)",
    "other_bytes": "of that, beyond weights and KV cache",
    "num_fds": "open handles",
    "num_sockets": "sockets among them",
    "num_threads": "threads",
}
HANDLES = ("num_fds", "num_sockets", "num_threads")


class EventRecord(Spec, frozen=True):
    kind: EventKind
    worker: str
    at_s: float  # since the load began
    note: str = ""  # what a command said that refused


class Sample(Spec, frozen=True):
    """One process at one time, in seconds since the load began."""

    at_s: float
    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    num_fds: int
    num_sockets: int
    num_threads: int
    num_processes: int = 0  # that lived: each worker that is there takes some handles of the others
    model_bytes: int = 0  # weights and KV cache, as the server last knew: they come and go with every plan

    @property
    def other_bytes(self) -> int:
        return self.uss_bytes - self.model_bytes


class ProcessRecord(Spec, frozen=True):
    """One process for as long as it lived."""

    name: str
    pid: int
    samples: tuple[Sample, ...]

    @property
    def lived_s(self) -> float:
        """Between its first sample and its last."""
        return self.samples[-1].at_s - self.samples[0].at_s if self.samples else 0.0

    def trend(self, figure: str) -> Trend | None:
        """Of one of `FIGURES` after the warm-up, None when it did not live long enough.

        Of handles: only while there were as many processes as there were most of the time.
        """
        samples: Sequence[Sample] = self.samples
        if figure in HANDLES and samples:
            usual = mode(sample.num_processes for sample in samples)
            samples = [sample for sample in samples if sample.num_processes == usual]
        points = [(sample.at_s, float(getattr(sample, figure))) for sample in samples]
        return trend(without_warm_up(points, WARM_UP_SHARE))

    def rising_handles(self) -> list[str]:
        trends = {figure: self.trend(figure) for figure in HANDLES}
        return [figure for figure, found in trends.items() if found and found.rises_steadily(HANDLES_ALLOWANCE)]


class Load(Spec, frozen=True):
    """What the clients saw. `notes`: the first few streams that were not as they should be."""

    num_streams: int = 0
    num_changed: int = 0  # with another text than the undisturbed one
    num_failed: int = 0
    num_tokens: int = 0
    longest_pause_s: float = 0.0  # between two tokens of a stream
    notes: tuple[str, ...] = ()


class SoakRecord(Spec, frozen=True):
    created: str
    machine: Machine
    model: str
    seed: int
    lasted_s: float
    load: Load
    events: tuple[EventRecord, ...]
    num_processes: int  # that were sampled: the server, and each worker that ever ran
    server: ProcessRecord
    worker: ProcessRecord  # the one that lived longest
    first_handles: dict[str, int]  # of the server by kind, after the first worker came and went, before all else
    last_handles: dict[str, int]  # at the end, when only the local workers were there again
    problems: tuple[str, ...] = ()  # workers that did not join, leave or end as they should
    leftovers: tuple[str, ...] = ()  # after everything was stopped
    kept: tuple[str, ...] = ()  # what a killed worker's files in the cache are: resumed, or removed, by the next one

    @property
    def failures(self) -> list[str]:
        """Why this soak is not passed, a line each."""
        load = self.load
        rising = [f"{one.name}: {FIGURES[f]}" for one in (self.server, self.worker) for f in one.rising_handles()]
        num_more = sum(self.last_handles.values()) - sum(self.first_handles.values())
        return [
            *([f"{load.num_changed} streams changed"] if load.num_changed else []),
            *([f"{load.num_failed} streams failed"] if load.num_failed else []),
            *(f"{what} grows steadily" for what in rising),
            *([f"server: {num_more} more open handles than before"] if num_more > HANDLES_ALLOWANCE else []),
            *self.problems,
            *(f"left over: {what}" for what in self.leftovers),
        ]
