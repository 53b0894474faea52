"""Who is alive, and what next; and how worker processes come to be.

Promises
- `ClusterState.handle(event) -> [Action]` is pure: the time comes with the events, nothing is sent, and the
  actions are carried out by the caller in order. The phases and what may happen in each are one table.
- `snapshot()`, `phase`, `epoch`, `plan` and `detail` are enough to build a `ClusterStatus`.
- Nothing waits for ever: joining, measuring, loading and silence have deadlines, and each names its worker.
- A worker that is lost ends every request with an error that names it and the reason. (Recovery will come
  behind this border: the same events, other actions.) One that the plan left out is only noted.
- An event that cannot happen raises `IllegalTransitionError` with the story so far. Late words of workers
  after the end (`failed`, `stopping`) are ignored. Drop messages of an old epoch before they become events.
- A launcher starts worker processes and reports their end. It stands beside the state and knows it not.

Must not know: tensors, the contents of requests. The state knows no sockets, processes or clock either.

The one-hour change, a failure story: a list of events and the actions they must give, as one row in
tests/unit/cluster/test_state.py; a new reaction is one handler and one line of `state._TRANSITIONS`.
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
from butterfly.cluster.launcher import Launcher, LocalLauncher, WorkerExit
from butterfly.cluster.members import Deadlines
from butterfly.cluster.state import ClusterState, IllegalTransitionError

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
