"""What the coordinator is to do, in the imperative. Carried out in the order of the list."""

from __future__ import annotations

from butterfly.specs import ClusterSpec, NodeSpec, Plan, Spec


class MeasureCluster(Spec, frozen=True):
    """Let these nodes profile themselves and measure their links, then answer ClusterMeasured.

    Tell who is at it with MeasuringProgressed: deadlines run for those.
    """

    nodes: tuple[NodeSpec, ...]


class MakePlan(Spec, frozen=True):
    """Call the planner for this cluster and answer PlanMade or PlanRefused."""

    cluster: ClusterSpec


class LoadStages(Spec, frozen=True):
    """Send every worker of the plan its stage, with this epoch."""

    plan: Plan
    epoch: int


class StartServing(Spec, frozen=True):
    """Issue steps of this epoch from now on, and accept requests."""

    epoch: int


class StopServing(Spec, frozen=True):
    """Issue no more steps and refuse new requests with this reason."""

    reason: str


class FailRequests(Spec, frozen=True):
    """End every unfinished request with `error` and this reason."""

    reason: str


class PingWorkers(Spec, frozen=True):
    """Tell these workers that the coordinator lives, and its epoch."""

    epoch: int
    workers: tuple[str, ...]


class ShutDownWorkers(Spec, frozen=True):
    """Tell these workers to exit: all that joined and may still run, also those given up as silent.

    Workers that never joined are their launcher's business alone.
    """

    reason: str
    workers: tuple[str, ...]


Action = (
    MeasureCluster | MakePlan | LoadStages | StartServing | StopServing | FailRequests | PingWorkers | ShutDownWorkers
)
