"""What happened to the cluster, in the past tense. Every event says when, on the coordinator's clock."""

from __future__ import annotations

from butterfly.specs import ClusterSpec, NodeSpec, Plan, Spec


class Event(Spec, frozen=True):
    now_s: float

    def describe(self) -> str:
        """Return the event as part of a story: one short line."""
        return type(self).__name__


class WorkerEvent(Event, frozen=True):
    worker: str

    def describe(self) -> str:
        return f"{type(self).__name__}({self.worker})"


class WorkerJoined(WorkerEvent, frozen=True):
    """The worker reached the coordinator; `node.name` is the worker's name."""

    node: NodeSpec
    host: str = ""
    pid: int = 0
    last_epoch: int = 0  # the newest plan that it has heard of, under another coordinator


class WorkerLoadProgressed(WorkerEvent, frozen=True):
    loaded_bytes: int
    total_bytes: int


class WorkerLoaded(WorkerEvent, frozen=True):
    """The worker's stage is ready to run."""

    weight_bytes: int  # as held in memory


class WorkerBeat(WorkerEvent, frozen=True):
    """The worker said that it lives."""

    resident_bytes: int
    kv_used_bytes: int


class WorkerFailed(WorkerEvent, frozen=True):
    """The worker said, or its link showed, that it cannot go on; `reason` is one line."""

    reason: str
    out_of_memory: bool = False

    def describe(self) -> str:
        return f"WorkerFailed({self.worker}: {self.reason})"


class WorkerLeft(WorkerEvent, frozen=True):
    """The worker said that it ends, and why."""

    reason: str

    def describe(self) -> str:
        return f"WorkerLeft({self.worker}: {self.reason})"


class DrainRequested(WorkerEvent, frozen=True):
    """Somebody wants this worker to hold nothing, and to end when it does."""


class WorkerExited(WorkerEvent, frozen=True):
    """The worker's process ended. A negative code is the signal that ended it; None: not known."""

    returncode: int | None
    detail: str = ""  # for instance the last line it wrote

    @property
    def cause(self) -> str:
        """Return how it ended, to follow its name."""
        if self.returncode is None:
            how = "exited"
        elif self.returncode < 0:
            how = f"was killed by signal {-self.returncode}"
        else:
            how = f"exited with code {self.returncode}"
        return how + (f": {self.detail}" if self.detail else "")

    def describe(self) -> str:
        return f"WorkerExited({self.worker} {self.cause})"


class MeasuringProgressed(Event, frozen=True):
    """These workers are being measured from now on, and no others."""

    workers: tuple[str, ...]
    what: str  # of them, in a word or a few: "compute"

    def describe(self) -> str:
        return f"MeasuringProgressed({self.what}: {', '.join(self.workers)})"


class ClusterMeasured(Event, frozen=True):
    """The answer to MeasureCluster: its nodes with their profiles, with or without the known ones, and the links.

    A measurement that another took the place of, or that was given up, may be answered or not.
    """

    cluster: ClusterSpec

    def describe(self) -> str:
        num_profiles = sum(node.profile is not None for node in self.cluster.nodes)
        return f"ClusterMeasured({num_profiles} profiles, {len(self.cluster.links)} links)"


class PlanMade(Event, frozen=True):
    """The answer to MakePlan. Each is answered, in the order of asking."""

    plan: Plan

    def describe(self) -> str:
        return "PlanMade(" + ", ".join(f"{s.worker} {s.start}:{s.end}" for s in self.plan.stages) + ")"


class PlanRefused(Event, frozen=True):
    """The other answer to MakePlan: nothing fits."""

    reason: str

    def describe(self) -> str:
        return f"PlanRefused({self.reason})"


class StopRequested(Event, frozen=True):
    reason: str = ""


class Ticked(Event, frozen=True):
    """Time passed. Deadlines are noticed only here, so send one several times a second."""

    refill_s: float = 0.0  # what it would take to compute again what running requests have cached; 0: none runs
