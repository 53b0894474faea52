"""A small cluster of three workers for tests of the cluster state."""

from __future__ import annotations

from butterfly.cluster import (
    Action,
    ClusterState,
    PlanMade,
    WorkerJoined,
    WorkerLoaded,
)
from butterfly.specs import NodeSpec, Plan, StagePlan

NAMES = ("w0", "w1", "w2")


def make_node(name: str) -> NodeSpec:
    return NodeSpec(name=name, memory_bytes=100, memory_bandwidth_bytes_per_s=10.0)


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


def loaded(name: str, now_s: float = 3.0) -> WorkerLoaded:
    return WorkerLoaded(now_s=now_s, worker=name, weight_bytes=40)


def starting() -> ClusterState:
    return ClusterState(NAMES, now_s=0.0)


def loading(now_s: float = 2.0) -> ClusterState:
    state = starting()
    for name in NAMES:
        state.handle(joined(name))
    state.handle(PlanMade(now_s=now_s, plan=make_plan()))
    return state


def ready(now_s: float = 3.0) -> ClusterState:
    state = loading()
    actions: list[Action] = []
    for name in NAMES:
        actions += state.handle(loaded(name, now_s))
    assert state.phase == "ready"
    return state
