"""Small clusters for tests of the cluster state: three workers that we started, and whoever else comes."""

from __future__ import annotations

from butterfly.cluster import (
    Action,
    ClusterMeasured,
    ClusterState,
    Deadlines,
    Event,
    MeasuringProgressed,
    PlanMade,
    PlanRefused,
    Ticked,
    WorkerBeat,
    WorkerExited,
    WorkerJoined,
    WorkerLoaded,
)
from butterfly.specs import ClusterSpec, LinkSpec, NodeSpec, Plan, StagePlan

NAMES = ("w0", "w1", "w2")
KILLED = "worker w1 was killed by signal 9"


def make_node(name: str) -> NodeSpec:
    return NodeSpec(name=name, memory_bytes=100, memory_bandwidth_bytes_per_s=10.0)


def make_cluster(names: tuple[str, ...] = NAMES) -> ClusterSpec:
    """Every worker has a link to the coordinator and to all others."""
    links = tuple(
        LinkSpec(source=name, target=other, latency_s=0.1, bandwidth_bytes_per_s=1.0)
        for name in names
        for other in ("coordinator", *names)
        if other != name
    )
    return ClusterSpec(nodes=tuple(make_node(name) for name in names), links=links)


def make_plan(names: tuple[str, ...] = NAMES, cost_s: float = 0.4) -> Plan:
    stages = tuple(
        StagePlan(
            worker=name,
            start=i,
            end=i + 1,
            embedding=i == 0,
            head=i == len(names) - 1,
            weight_bytes=40 + i,
            kv_bytes=10,
            predicted_compute_s=0.1,
        )
        for i, name in enumerate(names)
    )
    return Plan(
        stages=stages,
        predicted_tpot_s=0.4,
        bound_tpot_s=0.3,
        binding="compute of w0",
        kv_capacity_tokens=9,
        cost_s=cost_s,
    )


def joined(name: str, now_s: float = 1.0, last_epoch: int = 0) -> WorkerJoined:
    return WorkerJoined(now_s=now_s, worker=name, node=make_node(name), host="h", pid=7, last_epoch=last_epoch)


def progressed(*names: str, what: str = "compute", now_s: float = 1.2) -> MeasuringProgressed:
    return MeasuringProgressed(now_s=now_s, workers=names, what=what)


def measured(now_s: float = 1.5, names: tuple[str, ...] = NAMES) -> ClusterMeasured:
    return ClusterMeasured(now_s=now_s, cluster=make_cluster(names))


def planned(names: tuple[str, ...] = NAMES, now_s: float = 2.0, cost_s: float = 0.4) -> PlanMade:
    return PlanMade(now_s=now_s, plan=make_plan(names, cost_s))


def loaded(name: str, now_s: float = 3.0) -> WorkerLoaded:
    return WorkerLoaded(now_s=now_s, worker=name, weight_bytes=40)


def beat(name: str, now_s: float) -> WorkerBeat:
    return WorkerBeat(now_s=now_s, worker=name, resident_bytes=55, kv_used_bytes=6)


def killed(name: str = "w1", now_s: float = 4.0) -> WorkerExited:
    return WorkerExited(now_s=now_s, worker=name, returncode=-9)


def tell(state: ClusterState, *events: Event) -> list[Action]:
    """Return the actions of all of them."""
    return [action for event in events for action in state.handle(event)]


def live(state: ClusterState, until_s: float, names: tuple[str, ...]) -> list[Action]:
    """Let time pass, with a tick and the beats of these workers every second; return the actions but the pings."""
    actions = []
    now_s = float(int(until_s))
    start_s = now_s - 5.0
    for second in range(6):
        actions += tell(state, *(beat(name, start_s + second) for name in names))
    actions += state.handle(Ticked(now_s=until_s))
    return [action for action in actions if type(action).__name__ != "PingWorkers"]


def starting(*, is_open: bool = False, busy_timeout_s: float = 1000.0) -> ClusterState:
    """Nobody beats while it measures or loads, unless a story is about that."""
    return ClusterState(NAMES, 0.0, Deadlines(busy_timeout_s=busy_timeout_s), is_open=is_open)


def all_joined(*, is_open: bool = False) -> ClusterState:
    state = starting(is_open=is_open)
    for name in NAMES:
        state.handle(joined(name))
    return state


def measuring(*, is_open: bool = False) -> ClusterState:
    """Two workers are at it; one waits for its turn."""
    state = all_joined(is_open=is_open)
    state.handle(progressed("w0", "w1"))
    return state


def planning(*, is_open: bool = False) -> ClusterState:
    state = measuring(is_open=is_open)
    state.handle(measured())
    return state


def loading(now_s: float = 2.0, *, is_open: bool = False) -> ClusterState:
    state = planning(is_open=is_open)
    state.handle(planned(now_s=now_s))
    return state


def ready(now_s: float = 3.0, *, is_open: bool = False) -> ClusterState:
    state = loading(is_open=is_open)
    for name in NAMES:
        state.handle(loaded(name, now_s))
    assert state.phase == "ready"
    return state


def ready_without_w1(now_s: float = 3.0, *, is_open: bool = False) -> ClusterState:
    """The plan left a worker out."""
    state = planning(is_open=is_open)
    state.handle(planned(("w2", "w0")))
    for name in ("w0", "w2"):
        state.handle(loaded(name, now_s))
    return state


def ready_alone() -> ClusterState:
    """One worker that we started, where others may join."""
    state = ClusterState(["w0"], 0.0, Deadlines(busy_timeout_s=1000.0), is_open=True)
    tell(state, joined("w0"), progressed("w0"), measured(1.5, ("w0",)), planned(("w0",)), loaded("w0"))
    assert state.phase == "ready"
    return state


def moving_from_w1() -> ClusterState:
    """A worker of three was killed, and the plan for the others is being loaded."""
    state = ready()
    tell(state, killed(), planned(("w0", "w2"), now_s=4.5))
    assert state.phase == "moving"
    return state


def waiting_for_w1() -> ClusterState:
    """A worker of three was killed, and nothing fits on the others."""
    state = ready()
    tell(state, killed(), PlanRefused(now_s=4.5, reason="40 bytes are missing"))
    assert state.phase == "waiting"
    return state
