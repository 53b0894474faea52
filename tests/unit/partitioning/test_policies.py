"""The simple policies place layers as their names say, and are judged like a plan."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.partitioning import plan
from butterfly.partitioning.policies import (
    POLICIES,
    Policy,
    PolicyResult,
    by_flops,
    by_memory,
    compare,
    even,
    network_blind,
    one_node,
)
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import ClusterSpec, LayerPin, LinkSpec, PlanConstraints, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

WORKLOAD = WorkloadSpec(concurrency=1, context=10)
SPEEDS = (1e5, 2e5, 3e5)


def with_speeds(cluster: ClusterSpec, speeds: tuple[float, ...] = SPEEDS) -> ClusterSpec:
    nodes = tuple(
        msgspec.structs.replace(node, memory_bandwidth_bytes_per_s=speed)
        for node, speed in zip(cluster.nodes, speeds, strict=True)
    )
    return msgspec.structs.replace(cluster, nodes=nodes)


def by_name(results: tuple[PolicyResult, ...]) -> dict[str, PolicyResult]:
    return {result.name: result for result in results}


@pytest.mark.parametrize(
    ("policy", "num_layers", "expected"),
    [
        (even, 6, ((0, 1, 2), (2, 4, 6))),
        (even, 7, ((0, 1, 2), (3, 5, 7))),
        (even, 2, ((0, 1), (1, 2))),
        (by_memory, 7, ((0, 1, 2), (4, 6, 7))),
        (by_memory, 3, ((0, 1, 2), (1, 2, 3))),  # none without a layer
        (by_flops, 6, ((0, 1, 2), (1, 3, 6))),
        (one_node, 6, ((1,), (6,))),  # the fastest is too small
        (network_blind, 6, ((1, 2), (5, 6))),  # the fastest first, as far as its memory goes
    ],
)
def test_each_places_layers_by_its_rule(
    policy: Policy, num_layers: int, expected: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    slow = tuple(
        LinkSpec(source=f"w{a}", target=f"w{b}", latency_s=1.0, bandwidth_bytes_per_s=1e3)
        for a, b in ((0, 1), (0, 2), (1, 2))
    )
    cluster = msgspec.structs.replace(with_speeds(make_cluster(4000, 2000, 1000)), links=slow)
    if policy is one_node:
        cluster = with_speeds(make_cluster(4000, 2000, 500))
    if policy is network_blind:
        cluster = msgspec.structs.replace(with_speeds(make_cluster(4000, 2000, 200)), links=slow)
    problem = Problem.of(make_model(num_layers), cluster, WORKLOAD)
    assert policy(problem) == Placement(*expected)


def test_none_is_better_than_the_plan_where_nothing_is_asked_for() -> None:
    model = make_model()
    far = LinkSpec(source="w0", target="w1", latency_s=0.005, bandwidth_bytes_per_s=1e6)
    cluster = msgspec.structs.replace(with_speeds(make_cluster(500, 450, 400)), links=(far,))
    best = plan(model, cluster, WORKLOAD)
    results = compare(model, cluster, WORKLOAD)
    assert [result.name for result in results] == list(POLICIES)
    costs_s = [result.plan.cost_s for result in results if result.plan is not None]
    assert len(costs_s) == 4
    assert all(cost_s >= best.cost_s for cost_s in costs_s)
    assert max(costs_s) > best.cost_s
    assert by_name(results)["one node"] == PolicyResult(name="one node", plan=None, reason="no node holds everything")


def test_what_does_not_fit_says_why() -> None:
    results = by_name(compare(make_model(), make_cluster(9000, 150), WORKLOAD))
    assert results["even"].reason == "does not fit: node w1 would need 390 bytes, it has 150"
    assert results["even"].plan is None
    assert results["one node"].plan is not None
    nothing = compare(make_model(), make_cluster(100, 100), WORKLOAD)
    assert [result.plan for result in nothing] == [None] * len(POLICIES)
    assert by_name(nothing)["network-blind"].reason == "no plan fits"


def test_exclusions_hold_for_them_pins_do_not() -> None:
    constraints = PlanConstraints(exclude=("w0",), layers=(LayerPin(node="w1", start=0, end=1),), max_nodes=1)
    results = by_name(compare(make_model(), make_cluster(9000, 9000, 9000), WORKLOAD, constraints))
    made = results["even"].plan
    assert made is not None
    assert [(stage.worker, stage.num_layers) for stage in made.stages] == [("w1", 3), ("w2", 3)]
    everything = PlanConstraints(exclude=("w0", "w1"))
    assert by_name(compare(make_model(), make_cluster(9, 9), WORKLOAD, everything))["even"].plan is None
