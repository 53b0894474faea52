"""Several pipelines: when they pay, what they keep, and what is said of them."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.errors import InfeasiblePlanError, PlanError
from butterfly.partitioning import fleet_partitions, plan
from butterfly.partitioning.fleet_partitions import MAX_NODES
from butterfly.partitioning.replicas import Fleet, plan_replicas
from butterfly.specs import ClusterSpec, LayerPin, LinkSpec, ModelFootprint, PlanConstraints, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

MODEL = make_model(num_layers=6)  # 710 bytes of weights
WORKLOAD = WorkloadSpec(concurrency=4, context=10, objective="throughput")  # 60 bytes of KV cache for each stream


def wired(cluster: ClusterSpec, latency_s: float = 0.5) -> ClusterSpec:
    """Every pair of nodes over a link so slow that a pipeline of two hardly pays."""
    names = [node.name for node in cluster.nodes]
    links = tuple(
        LinkSpec(source=a, target=b, latency_s=latency_s, bandwidth_bytes_per_s=1e6)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    )
    return msgspec.structs.replace(cluster, links=links)


def nodes_of(fleet: Fleet) -> list[list[str]]:
    return [[stage.worker for stage in one.stages] for one in fleet.pipelines]


def test_two_nodes_that_hold_all_serve_each_for_themselves() -> None:
    fleet = plan_replicas(MODEL, wired(make_cluster(1000, 1000)), WORKLOAD)
    assert nodes_of(fleet) == [["w0"], ["w1"]]
    assert [one.concurrency for one in fleet.pipelines] == [2, 2]
    assert fleet.gap == 0
    assert fleet.left_out == ()
    assert fleet.predicted_tokens_per_s > 1.05 * fleet.single_tokens_per_s
    assert fleet.single_tokens_per_s == plan(MODEL, wired(make_cluster(1000, 1000)), WORKLOAD).predicted_tokens_per_s


def test_the_faster_pipeline_has_more_streams_and_comes_first() -> None:
    slow, fast = make_cluster(2000).nodes[0], make_cluster(0, 2000, bandwidth=3000.0).nodes[1]
    fleet = plan_replicas(MODEL, wired(ClusterSpec(nodes=(slow, fast))), WORKLOAD)
    assert nodes_of(fleet)[0] == ["w1"]
    assert fleet.pipelines[0].concurrency > sum(one.concurrency for one in fleet.pipelines[1:])


def test_the_number_of_pipelines_is_limited_when_asked() -> None:
    cluster = wired(make_cluster(1000, 1000, 1000))
    counts = [len(plan_replicas(MODEL, cluster, WORKLOAD, max_replicas=most).pipelines) for most in (0, 1, 2, 9)]
    assert counts == [3, 1, 2, 3]
    single = plan_replicas(MODEL, cluster, WORKLOAD, max_replicas=1)
    assert single.pipelines == (plan(MODEL, cluster, WORKLOAD),)
    with pytest.raises(PlanError, match="there cannot be -1 pipelines"):
        plan_replicas(MODEL, cluster, WORKLOAD, max_replicas=-1)


def test_the_objective_is_throughput_whatever_is_asked() -> None:
    cluster = wired(make_cluster(1000, 1000))
    latency = msgspec.structs.replace(WORKLOAD, objective="latency")
    assert plan_replicas(MODEL, cluster, latency) == plan_replicas(MODEL, cluster, WORKLOAD)


def test_pins_and_exclusions_hold_for_all_pipelines_together() -> None:
    cluster = wired(make_cluster(1000, 1000, 1000, 1000))
    pinned = PlanConstraints(layers=(LayerPin(node="w2", start=2, end=6),), exclude=("w1",))
    fleet = plan_replicas(MODEL, cluster, WORKLOAD, pinned)
    ranges = {stage.worker: (stage.start, stage.end) for one in fleet.pipelines for stage in one.stages}
    assert ranges["w2"] == (2, 6)
    assert "w1" not in ranges
    assert "w1" in fleet.left_out
    two_at_most = plan_replicas(MODEL, cluster, WORKLOAD, PlanConstraints(max_nodes=2))
    assert sum(len(nodes) for nodes in nodes_of(two_at_most)) == 2
    all_used = plan_replicas(MODEL, cluster, WORKLOAD, PlanConstraints(use_all=True))
    assert sorted(name for nodes in nodes_of(all_used) for name in nodes) == ["w0", "w1", "w2", "w3"]


def test_streams_that_no_pipeline_has_room_for_may_fit_in_two() -> None:
    one_layer = make_model(num_layers=1, kv=20)  # 210 bytes of weights, and 200 of KV cache for each stream
    cluster = make_cluster(700, 700)
    with pytest.raises(InfeasiblePlanError):
        plan(one_layer, cluster, WORKLOAD)
    fleet = plan_replicas(one_layer, cluster, WORKLOAD)
    assert [one.concurrency for one in fleet.pipelines] == [2, 2]
    assert fleet.single_tokens_per_s == 0


def test_what_fits_nowhere_is_refused_as_a_single_plan_is() -> None:
    for cluster in (make_cluster(100, 100), ClusterSpec(nodes=())):
        with pytest.raises(InfeasiblePlanError) as single:
            plan(MODEL, cluster, WORKLOAD)
        with pytest.raises(InfeasiblePlanError) as fleet:
            plan_replicas(MODEL, cluster, WORKLOAD)
        assert str(fleet.value) == str(single.value)


def test_a_limit_to_the_kv_cache_is_shared_with_the_streams() -> None:
    limited = msgspec.structs.replace(WORKLOAD, kv_tokens=20)
    fleet = plan_replicas(MODEL, wired(make_cluster(1000, 1000)), limited)
    assert [one.kv_capacity_tokens for one in fleet.pipelines] == [10, 10]


@pytest.mark.parametrize("budget", ["MAX_WORK", "MAX_SOLVED"])
def test_a_budget_that_is_spent_leaves_a_gap_that_is_true(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = wired(make_cluster(700, 800, 1000, 1200), latency_s=0.01)
    proven = plan_replicas(MODEL, cluster, WORKLOAD)
    monkeypatch.setattr(fleet_partitions, budget, 1)
    cut_short = plan_replicas(MODEL, cluster, WORKLOAD)
    assert proven.gap == 0
    assert cut_short.gap > 0
    assert cut_short.single_tokens_per_s <= cut_short.predicted_tokens_per_s <= proven.predicted_tokens_per_s
    assert cut_short.bound_tokens_per_s >= proven.predicted_tokens_per_s


def large(model: ModelFootprint, num_nodes: int) -> tuple[ModelFootprint, ClusterSpec, WorkloadSpec]:
    """Nodes in pairs that are near each other and hold the model together, and no one alone."""
    cluster = wired(make_cluster(*[600] * num_nodes), latency_s=2.0)
    near = tuple(
        LinkSpec(source=f"w{i}", target=f"w{i + 1}", latency_s=0.001, bandwidth_bytes_per_s=1e6)
        for i in range(0, num_nodes, 2)
    )
    pairs = {(link.source, link.target) for link in near}
    far = tuple(link for link in cluster.links if (link.source, link.target) not in pairs)
    workload = msgspec.structs.replace(WORKLOAD, concurrency=num_nodes)
    return model, msgspec.structs.replace(cluster, links=(*near, *far)), workload


def test_beyond_what_can_be_tried_a_search_finds_the_pairs_and_states_its_gap() -> None:
    asked = large(MODEL, MAX_NODES + 2)
    fleet = plan_replicas(*asked)
    found = sorted(sorted(nodes) for nodes in nodes_of(fleet))
    assert found == sorted([f"w{i}", f"w{i + 1}"] for i in range(0, MAX_NODES + 2, 2))
    assert fleet.bound_tokens_per_s >= fleet.predicted_tokens_per_s > 2 * fleet.single_tokens_per_s
    assert fleet.gap == pytest.approx(1 - fleet.predicted_tokens_per_s / fleet.bound_tokens_per_s)
    assert 0 <= fleet.gap < 0.2
    assert plan_replicas(*asked) == fleet


def test_a_search_keeps_pins_and_limits() -> None:
    asked = large(MODEL, MAX_NODES + 2)
    pins = PlanConstraints(layers=(LayerPin(node="w5", start=0, end=3),), max_nodes=6)
    fleet = plan_replicas(*asked, pins, max_replicas=3)
    ranges = {stage.worker: (stage.start, stage.end) for one in fleet.pipelines for stage in one.stages}
    assert ranges["w5"] == (0, 3)
    assert len(ranges) <= 6
    assert len(fleet.pipelines) <= 3
