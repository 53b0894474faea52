"""Snapshots for people and tools: who is alive, what runs, how fast."""

from __future__ import annotations

from typing import Literal

from butterfly.specs.base import Spec
from butterfly.specs.plans import ClusterSpec, Plan

WorkerPhase = Literal["starting", "joined", "measuring", "loading", "ready", "standby", "lost"]
"""standby: the plan left it out; it holds nothing, and nothing waits for it."""

ClusterPhase = Literal["starting", "measuring", "loading", "ready", "moving", "waiting", "failed", "stopping"]
"""moving: from one plan to the next; requests are held and go on after it. waiting: nothing fits on the workers that
are there; requests are refused until more come."""


class WorkerStatus(Spec, frozen=True):
    name: str
    phase: WorkerPhase
    start: int = 0
    end: int = 0
    embedding: bool = False
    head: bool = False
    device: str = ""
    host: str = ""
    pid: int = 0
    memory_bytes: int = 0  # what it may use
    weight_bytes: int = 0  # planned
    resident_bytes: int = 0  # of the whole process, last heartbeat
    kv_used_bytes: int = 0
    load_fraction: float = 0.0
    loss: str = ""  # of one that is lost: which worker, and how


class StageSpeed(Spec, frozen=True):
    worker: str
    compute_s: float


class StreamSpeed(Spec, frozen=True):
    """Where the time of one generated token goes while no other request runs."""

    context: int  # tokens in the KV cache before it
    tpot_s: float  # the whole step, from scheduling it to holding its token
    stages: tuple[StageSpeed, ...]  # in pipeline order

    @property
    def between_s(self) -> float:
        """What no stage computed: links, and the software at their ends and in the coordinator."""
        return self.tpot_s - sum(stage.compute_s for stage in self.stages)


class MeasuredSpeed(StreamSpeed, frozen=True):
    """Medians over the last such steps; the context is their mean."""

    num_steps: int


class Recovery(Spec, frozen=True):
    """A move from one plan to the next, in seconds on the coordinator's monotonic clock. None: not yet."""

    cause: str  # which workers were lost and how, or who joined or leaves
    lost_s: float  # when the first lost worker ended, or was last heard of; without a loss: as `noticed_s`
    noticed_s: float
    planned_s: float | None = None  # of the last plan, if further losses took several
    loaded_s: float | None = None


class ClusterStatus(Spec, frozen=True):
    """A snapshot for `/status`, `butterfly status` and `/ready`."""

    phase: ClusterPhase
    epoch: int
    model: str
    workers: tuple[WorkerStatus, ...]
    plan: Plan | None = None
    running_requests: int = 0
    waiting_requests: int = 0
    kv_used_tokens: int = 0  # of plan.kv_capacity_tokens: held by running requests
    kv_kept_tokens: int = 0  # held by finished ones, for the next request with the same beginning
    detail: str = ""  # one line: why not ready; when ready, which workers on standby were lost
    cluster: ClusterSpec | None = None  # as measured, with profiles of this model
    measured: MeasuredSpeed | None = None  # None: no request has run alone yet
    recoveries: tuple[Recovery, ...] = ()  # the last moves to another plan, oldest first; the newest may be under way
    predicted: StreamSpeed | None = None  # by the planner's costs, at the context of `measured`
    now_s: float = 0.0  # on the clock of the recoveries
