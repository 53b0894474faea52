"""What a better cluster would give is what the plan for it gives."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.partitioning import plan, what_if
from butterfly.partitioning.what_if import MAX_LINK_PLANS, MAX_MEMORY_PLANS, WORTH_SAYING
from butterfly.specs import (
    ClusterSpec,
    ComputeProfile,
    LayerProfile,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    Objective,
    Plan,
    PlanConstraints,
    TimeTable,
    WorkloadSpec,
)
from tests.unit.partitioning.shapes import make_cluster, make_model

MODEL = make_model()
WORKLOAD = WorkloadSpec(concurrency=1, context=10)
FREE = PlanConstraints()


def changes(
    cluster: ClusterSpec, model: ModelFootprint = MODEL, workload: WorkloadSpec = WORKLOAD
) -> dict[str, what_if.Change]:
    made = plan(model, cluster, workload)
    found = what_if.what_if(model, cluster, workload, FREE, made)
    speedups = [change.speedup for change in found]
    assert speedups == sorted(speedups, reverse=True)
    assert all(speedup >= WORTH_SAYING for speedup in speedups)
    assert all(change.speedup == made.cost_s / change.cost_s for change in found)
    return {change.what: change for change in found}


def cluster_of(small: int = 400, large: int = 4000, bandwidth: float = 1e9, latency_s: float = 0.0001) -> ClusterSpec:
    """A fast small node and a slow large one."""
    first, second = make_cluster(small, large, bandwidth=1e5).nodes
    wire = LinkSpec(source="w0", target="w1", latency_s=latency_s, bandwidth_bytes_per_s=bandwidth)
    return ClusterSpec(nodes=(first, msgspec.structs.replace(second, memory_bandwidth_bytes_per_s=4e4)), links=(wire,))


def test_memory_that_binds_and_memory_that_does_not() -> None:
    found = changes(cluster_of())
    more = found["1.00 GB more memory on w0"]
    roomy = plan(MODEL, cluster_of(small=10**9), WORKLOAD)
    assert (more.predicted_tpot_s, more.cost_s) == (roomy.predicted_tpot_s, roomy.cost_s)
    assert more.predicted_tokens_per_s == pytest.approx(1 / more.predicted_tpot_s)
    assert "1.00 GB more memory on w1" not in found  # it could hold everything


def test_the_slowest_node_twice_as_fast() -> None:
    cluster = cluster_of()
    first, second = cluster.nodes
    faster = ClusterSpec(
        nodes=(first, msgspec.structs.replace(second, memory_bandwidth_bytes_per_s=8e4)), links=cluster.links
    )
    assert changes(cluster)["w1 twice as fast"].cost_s == plan(MODEL, faster, WORKLOAD).cost_s


def test_measured_times_are_halved_too() -> None:
    table = TimeTable(num_tokens=(1, 2), contexts=(0,), seconds=((0.01, 0.02),))
    profile = ComputeProfile(layers=(LayerProfile(decode=table, prefill=table),), head=table, step_s=0.004)
    node = NodeSpec(name="w0", memory_bytes=4000, memory_bandwidth_bytes_per_s=1e5, profile=profile)
    made = plan(MODEL, ClusterSpec(nodes=(node,)), WORKLOAD)
    found = changes(ClusterSpec(nodes=(node,)))["w0 twice as fast"]
    compute_s = made.stages[0].predicted_compute_s
    assert compute_s == pytest.approx(6 * 0.01 + 0.01 + 0.004)
    assert found.cost_s == pytest.approx(made.cost_s - compute_s / 2)


def test_links_by_what_they_lack() -> None:
    narrow = changes(cluster_of(large=650, bandwidth=500.0))
    wide = plan(MODEL, cluster_of(large=650, bandwidth=1000.0), WORKLOAD)
    assert narrow["twice the bandwidth between w0 and w1"].cost_s == pytest.approx(wide.cost_s)
    assert "half the latency between w0 and w1" not in narrow
    distant = changes(cluster_of(large=650, latency_s=0.003))
    near = plan(MODEL, cluster_of(large=650, latency_s=0.0015), WORKLOAD)
    assert distant["half the latency between w0 and w1"].cost_s == pytest.approx(near.cost_s)
    assert "twice the bandwidth between w0 and w1" not in distant


def test_each_direction_of_a_link_gets_better_from_what_it_is() -> None:
    cluster = cluster_of(large=650, latency_s=0.002)
    [wire] = cluster.links
    back = LinkSpec(source="w1", target="w0", latency_s=0.001, bandwidth_bytes_per_s=1e9)
    both = msgspec.structs.replace(cluster, links=(wire, back))
    better = msgspec.structs.replace(
        both,
        links=(msgspec.structs.replace(wire, latency_s=0.001), msgspec.structs.replace(back, latency_s=0.0005)),
    )
    assert changes(both)["half the latency between w0 and w1"].cost_s == plan(MODEL, better, WORKLOAD).cost_s


@pytest.mark.parametrize("objective", ["latency", "throughput", "balanced"])
def test_the_number_of_plans_is_bounded(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Plan] = []

    def counted(*arguments: object) -> Plan:
        made.append(plan(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(what_if, "make_plan", counted)
    workload = msgspec.structs.replace(WORKLOAD, objective=objective, concurrency=4)
    links = tuple(
        LinkSpec(source=f"w{a}", target=f"w{b}", latency_s=0.001, bandwidth_bytes_per_s=8e3)
        for a in range(5)
        for b in range(a)
    )
    cluster = msgspec.structs.replace(make_cluster(*[330] * 5, bandwidth=1e5), links=links)
    now = plan(MODEL, cluster, workload)
    assert what_if.what_if(MODEL, cluster, workload, FREE, now)
    assert MAX_MEMORY_PLANS < len(made) <= MAX_LINK_PLANS + MAX_MEMORY_PLANS + 1


def test_of_a_large_cluster_nothing_is_planned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_of()
    made = plan(MODEL, cluster, WORKLOAD)
    monkeypatch.setattr(what_if, "MAX_PLANNED_NODES", 1)
    monkeypatch.setattr(what_if, "make_plan", None)
    found = {change.what: change for change in what_if.what_if(MODEL, cluster, WORKLOAD, FREE, made)}
    slow = made.stages[-1] if made.stages[-1].worker == "w1" else made.stages[0]
    assert found["w1 twice as fast"].cost_s == pytest.approx(made.cost_s - slow.predicted_compute_s / 2)
