"""What the coordinator is to do, in the imperative. Carried out in the order of the list."""

from __future__ import annotations

from butterfly.specs import ClusterSpec, NodeSpec, Plan, Spec


class MeasureCluster(Spec, frozen=True):
    """Let these nodes profile themselves and measure their links, then answer ClusterMeasured.

    Tell who is at it with MeasuringProgressed: deadlines run for those. `known` are nodes that were measured before
    and may be serving: they only echo, and a link from one of them to a new one is taken to be what the way back is.
    It takes the place of any measurement that is still under way.
    """

    nodes: tuple[NodeSpec, ...]
    known: ClusterSpec = ClusterSpec(nodes=())


class MakePlan(Spec, frozen=True):
    """Call the planner for this cluster, less those workers, and answer PlanMade or PlanRefused at once."""

    cluster: ClusterSpec
    exclude: tuple[str, ...] = ()  # who is about to leave


class LoadStages(Spec, frozen=True):
    """Send every worker of the plan its stage, with this epoch."""

    plan: Plan
    epoch: int


class StartServing(Spec, frozen=True):
    """Issue steps of this epoch from now on, and accept requests. Those that were held go on, from their tokens."""

    epoch: int


class HoldRequests(Spec, frozen=True):
    """Issue no more steps and forget those under way. Requests keep their tokens and wait; new ones wait with them.

    A measurement that is under way is given up. Exactly one StartServing or FailRequests follows.
    """

    reason: str


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
    """Tell these workers to exit: of those that joined, all but the lost ones, whose connections are closed.

    Workers that are lost or never joined are their launcher's business alone.
    """

    reason: str
    workers: tuple[str, ...]


class RestartWorker(Spec, frozen=True):
    """Start the process of this worker anew: one that we started, and that has ended.

    A start that fails is a WorkerExited, so that it is tried again later.
    """

    worker: str


class ForgetWorker(Spec, frozen=True):
    """Close the connection to this worker, and let its key in no more until it is admitted again.

    It may never have joined, and its process may still run.
    """

    worker: str


Action = (
    MeasureCluster
    | MakePlan
    | LoadStages
    | StartServing
    | HoldRequests
    | StopServing
    | FailRequests
    | PingWorkers
    | ShutDownWorkers
    | RestartWorker
    | ForgetWorker
)
