"""plan() by example."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.errors import InfeasiblePlanError, PlanError
from butterfly.partitioning import plan
from butterfly.partitioning.costs import HOP_SOFTWARE_S
from butterfly.specs import ClusterSpec, LayerPin, LinkSpec, NodeSpec, Objective, Plan, PlanConstraints, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

WORKLOAD = WorkloadSpec(concurrency=1, context=10)
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "balanced")


def shares(made: Plan) -> list[tuple[str, int]]:
    return [(stage.worker, stage.num_layers) for stage in made.stages]


def cluster_of(*speeds_and_memories: tuple[float, int]) -> ClusterSpec:
    return ClusterSpec(
        nodes=tuple(
            NodeSpec(name=f"w{i}", memory_bytes=memory, memory_bandwidth_bytes_per_s=bandwidth)
            for i, (bandwidth, memory) in enumerate(speeds_and_memories)
        )
    )


def test_one_node_is_a_plan_and_the_figures_are_exact() -> None:
    made = plan(make_model(), make_cluster(4000, 2000), WORKLOAD)
    [stage] = made.stages
    assert (stage.worker, stage.start, stage.end, stage.embedding, stage.head) == ("w0", 0, 6, True, True)
    assert (stage.weight_bytes, stage.kv_bytes, made.kv_capacity_tokens) == (600 + 50 + 60, 60, 10)
    assert stage.predicted_compute_s == pytest.approx((6 * 100 + 60 + 6 * 5) / 1000)  # KV at half the context
    links_s = 2 * (60e-6 + 4 / 1e9)
    assert made.bound_tpot_s == pytest.approx(0.69 + links_s)
    assert made.predicted_tpot_s == made.cost_s == pytest.approx(made.bound_tpot_s + 2 * HOP_SOFTWARE_S)
    assert (made.left_out, made.gap, made.pin_cost_s) == (("w1",), 0.0, 0.0)
    assert made.binding == "compute of node w0"


def test_a_model_that_does_not_fit_one_node_fills_the_fastest_first() -> None:
    made = plan(make_model(), cluster_of((100.0, 500), (1000.0, 500), (300.0, 500)), WORKLOAD)
    assert sorted(shares(made)) == [("w1", 4), ("w2", 2)]
    assert made.left_out == ("w0",)
    assert made.binding == "memory of node w1"


def test_throughput_balances_the_stages_where_latency_would_not_split() -> None:
    cluster = cluster_of((2000.0, 5000), (1000.0, 5000))
    workload = WorkloadSpec(concurrency=64, context=10)  # fewer would share one pass over the weights
    fast = plan(make_model(head_bytes=0), cluster, msgspec.structs.replace(workload, objective="throughput"))
    assert sorted(shares(fast)) == [("w0", 4), ("w1", 2)]
    alone = plan(make_model(head_bytes=0), cluster, workload)
    assert shares(alone) == [("w0", 6)]
    assert fast.predicted_tokens_per_s > alone.predicted_tokens_per_s


def test_a_slow_link_is_worth_going_around() -> None:
    slow = LinkSpec(source="w0", target="w1", latency_s=9.0, bandwidth_bytes_per_s=1e9)
    cluster = ClusterSpec(nodes=make_cluster(400, 400, 400).nodes, links=(slow,))
    assert {name for name, _ in shares(plan(make_model(), cluster, WORKLOAD))} != {"w0", "w1"}
    only = ClusterSpec(nodes=cluster.nodes[:2], links=(slow,))
    made = plan(make_model(), only, WORKLOAD)
    assert made.binding == "link w1-w0" if made.stages[0].worker == "w1" else "link w0-w1"
    assert made.bound_tpot_s > 9.0


def test_pins_hold_and_say_what_they_cost() -> None:
    cluster = make_cluster(4000, 4000, 4000)
    pins = PlanConstraints(layers=(LayerPin(node="w1", start=0, end=2),), exclude=("w0",))
    made = plan(make_model(), cluster, WORKLOAD, pins)
    assert shares(made) == [("w1", 2), ("w2", 4)]
    free = plan(make_model(), cluster, WORKLOAD)
    assert made.pin_cost_s == pytest.approx(made.cost_s - free.cost_s)
    assert made.pin_cost_s > 0
    assert made.left_out == ("w0",)


def test_all_nodes_or_so_many_at_most() -> None:
    cluster = make_cluster(4000, 4000, 4000)
    everyone = plan(make_model(), cluster, WORKLOAD, PlanConstraints(use_all=True))
    assert len(everyone.stages) == 3
    throughput = msgspec.structs.replace(WORKLOAD, concurrency=96, objective="throughput")
    assert len(plan(make_model(), cluster, throughput).stages) == 3
    assert len(plan(make_model(), cluster, throughput, PlanConstraints(max_nodes=2)).stages) == 2


def test_kv_is_reserved_for_the_workload_but_never_beyond_the_models_context() -> None:
    made = plan(make_model(max_context=64), make_cluster(9000), WorkloadSpec(concurrency=3, context=1000))
    assert made.kv_capacity_tokens == 3 * 64


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_plan_can_be_written_and_read(objective: Objective) -> None:
    workload = msgspec.structs.replace(WORKLOAD, concurrency=3, objective=objective)
    made = plan(make_model(), make_cluster(500, 500), workload, PlanConstraints(use_all=True))
    assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made


class TestInfeasible:
    def test_more_workers_than_layers(self) -> None:
        with pytest.raises(InfeasiblePlanError, match="hold layers but the model has 2"):
            plan(make_model(num_layers=2), make_cluster(999, 999, 999), WORKLOAD, PlanConstraints(use_all=True))

    @pytest.mark.parametrize("cluster", [ClusterSpec(nodes=()), make_cluster(999)])
    def test_no_workers(self, cluster: ClusterSpec) -> None:
        everyone = PlanConstraints(exclude=tuple(node.name for node in cluster.nodes))
        with pytest.raises(InfeasiblePlanError, match="no workers"):
            plan(make_model(), cluster, WORKLOAD, everyone)

    def test_too_much_context_says_which_would_fit(self) -> None:
        model, cluster = make_model(kv=10), make_cluster(550, 560)
        with pytest.raises(InfeasiblePlanError, match="1 x 60 tokens") as caught:
            plan(model, cluster, WorkloadSpec(context=60))
        assert "a context of 6 tokens" in str(caught.value)
        assert plan(model, cluster, WorkloadSpec(context=6)).stages
        with pytest.raises(InfeasiblePlanError):
            plan(model, cluster, WorkloadSpec(context=7))


def test_nonsense_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="share a name"):
        plan(make_model(), ClusterSpec(nodes=make_cluster(9).nodes * 2), WORKLOAD)
