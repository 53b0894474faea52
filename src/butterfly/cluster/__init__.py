"""Who is alive, and what next; and how worker processes come to be.

Promises
- `ClusterState.handle(event) -> [Action]` is pure: the time comes with the events, nothing is sent, and the
  actions are carried out by the caller in order. The phases and what may happen in each are one table.
- `snapshot()`, `phase`, `epoch`, `plan` and `detail` are enough to build a `ClusterStatus`.
- Nothing waits for ever: joining, measuring, loading and silence have deadlines, and each names its worker.
- When a worker with a stage is lost, requests are held, a plan is made for those that are left, loaded under a higher
  epoch, and requests go on. Where nothing fits, every request ends with an error that names the worker, why it was
  lost and what would fit, and the cluster waits for more workers. One that held nothing is only noted.
- Workers may join while others serve, and come back under their name to the row that they had; they are measured, and
  moved to only where and when that pays. `DrainRequested` lets one go without losing a request, or says why not.
- Every HoldRequests is followed by one StartServing or FailRequests; no stage is loaded for a plan with a worker that
  is known to be lost; epochs rise, above any that a worker has heard of.
- Workers that we started and that end are started again, after pauses that grow. Before the first `ready` the loss of
  one ends the start.
- An event that cannot happen raises `IllegalTransitionError` with the story so far. Late words of workers
  after the end (`failed`, `stopping`) are ignored. Drop messages of an old epoch before they become events.
- A launcher starts worker processes and reports their end. It stands beside the state and knows it not.

Must not know: tensors, the contents of requests. The state knows no sockets, processes or clock either.

The one-hour change, a failure story: a list of events and the actions they must give, as one row in
tests/unit/cluster; a new reaction is one handler and one line of `state._TRANSITIONS`, or a branch of `decisions`.

How it fits together: `state` has the table, `attendance` and `progress` its handlers, `decisions` what they have in
common: what to ask next, what follows from a loss, when to move. `facts` is what is known, made of `roster` (members),
`measured`, `questions` (what was asked), `drains`, `offer` (a better plan that waits); `wording` says it to people.
"""

from butterfly.cluster.actions import (
    Action,
    FailRequests,
    ForgetWorker,
    HoldRequests,
    LoadStages,
    MakePlan,
    MeasureCluster,
    PingWorkers,
    RestartWorker,
    ShutDownWorkers,
    StartServing,
    StopServing,
)
from butterfly.cluster.events import (
    ClusterMeasured,
    DrainRequested,
    Event,
    MeasuringProgressed,
    PlanMade,
    PlanRefused,
    StopRequested,
    Ticked,
    WorkerBeat,
    WorkerEvent,
    WorkerExited,
    WorkerFailed,
    WorkerJoined,
    WorkerLeft,
    WorkerLoaded,
    WorkerLoadProgressed,
)
from butterfly.cluster.facts import IllegalTransitionError
from butterfly.cluster.launcher import Launcher, LocalLauncher, WorkerExit
from butterfly.cluster.members import Deadlines
from butterfly.cluster.ray_launcher import RayLauncher
from butterfly.cluster.state import ClusterState
from butterfly.specs import Recovery

__all__ = [
    "Action",
    "ClusterMeasured",
    "ClusterState",
    "Deadlines",
    "DrainRequested",
    "Event",
    "FailRequests",
    "ForgetWorker",
    "HoldRequests",
    "IllegalTransitionError",
    "Launcher",
    "LoadStages",
    "LocalLauncher",
    "MakePlan",
    "MeasureCluster",
    "MeasuringProgressed",
    "PingWorkers",
    "PlanMade",
    "PlanRefused",
    "RayLauncher",
    "Recovery",
    "RestartWorker",
    "ShutDownWorkers",
    "StartServing",
    "StopRequested",
    "StopServing",
    "Ticked",
    "WorkerBeat",
    "WorkerEvent",
    "WorkerExit",
    "WorkerExited",
    "WorkerFailed",
    "WorkerJoined",
    "WorkerLeft",
    "WorkerLoadProgressed",
    "WorkerLoaded",
]
