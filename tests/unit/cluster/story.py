"""A small cluster of three workers for tests of the cluster state."""

from __future__ import annotations

from butterfly.cluster import (
    Action,
    ClusterMeasured,
    ClusterState,
    MeasuringProgressed,
    PlanMade,
    WorkerJoined,
    WorkerLoaded,
)
from butterfly.specs import ClusterSpec, NodeSpec, Plan, StagePlan

NAMES = ("w0", "w1", "w2")


def make_node(name: str) -> NodeSpec:
    return NodeSpec(name=name, memory_bytes=100, memory_bandwidth_bytes_per_s=10.0)


def make_cluster(names: tuple[str, ...] = NAMES) -> ClusterSpec:
    return ClusterSpec(nodes=tuple(make_node(name) for name in names))


def make_plan(names: tuple[str, ...] = NAMES) -> Plan:
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
    return Plan(stages=stages, predicted_tpot_s=0.4, bound_tpot_s=0.3, binding="compute of w0", kv_capacity_tokens=9)


def joined(name: str, now_s: float = 1.0) -> WorkerJoined:
    return WorkerJoined(now_s=now_s, worker=name, node=make_node(name), host="h", pid=7)


def progressed(*names: str, what: str = "compute", now_s: float = 1.2) -> MeasuringProgressed:
    return MeasuringProgressed(now_s=now_s, workers=names, what=what)


def measured(now_s: float = 1.5, names: tuple[str, ...] = NAMES) -> ClusterMeasured:
    return ClusterMeasured(now_s=now_s, cluster=make_cluster(names))


def loaded(name: str, now_s: float = 3.0) -> WorkerLoaded:
    return WorkerLoaded(now_s=now_s, worker=name, weight_bytes=40)


def starting() -> ClusterState:
    return ClusterState(NAMES, now_s=0.0)


def all_joined() -> ClusterState:
    state = starting()
    for name in NAMES:
        state.handle(joined(name))
    return state


def measuring() -> ClusterState:
    """Two workers are at it; one waits for its turn."""
    state = all_joined()
    state.handle(progressed("w0", "w1"))
    return state


def planning() -> ClusterState:
    state = measuring()
    state.handle(measured())
    return state


def loading(now_s: float = 2.0) -> ClusterState:
    state = planning()
    state.handle(PlanMade(now_s=now_s, plan=make_plan()))
    return state


def ready(now_s: float = 3.0) -> ClusterState:
    state = loading()
    actions: list[Action] = []
    for name in NAMES:
        actions += state.handle(loaded(name, now_s))
    assert state.phase == "ready"
    return state


def ready_without_w1(now_s: float = 3.0) -> ClusterState:
    """The plan left a worker out."""
    state = planning()
    state.handle(PlanMade(now_s=2.0, plan=make_plan(("w2", "w0"))))
    for name in ("w0", "w2"):
        state.handle(loaded(name, now_s))
    return state
