"""plan() and explain() by example."""

from __future__ import annotations

import pytest

from butterfly.errors import InfeasiblePlanError, PlanError
from butterfly.partitioning import explain, plan
from butterfly.partitioning.costs import HOP_SOFTWARE_S
from butterfly.partitioning.placement import proportional_counts
from butterfly.specs import ClusterSpec, LinkSpec, Plan, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

WORKLOAD = WorkloadSpec(concurrency=1, context=10)


def counts(made: Plan) -> list[int]:
    return [stage.num_layers for stage in made.stages]


@pytest.mark.parametrize(
    ("num_layers", "memories", "expected"),
    [
        (30, (1, 1, 1), (10, 10, 10)),
        (10, (1, 1, 1), (4, 3, 3)),
        (6, (2, 1), (4, 2)),
        (7, (1, 2, 4), (1, 2, 4)),
        (4, (1000, 1, 1), (2, 1, 1)),
        (3, (1000, 1, 1), (1, 1, 1)),
    ],
)
def test_largest_remainder(num_layers: int, memories: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert proportional_counts(num_layers, memories) == expected


def test_layers_follow_memory_and_the_figures_are_exact() -> None:
    made = plan(make_model(), make_cluster(4000, 2000), WORKLOAD)
    first, last = made.stages
    assert (first.start, first.end, first.embedding, first.head) == (0, 4, True, False)
    assert (last.start, last.end, last.embedding, last.head) == (4, 6, False, True)
    assert (first.weight_bytes, last.weight_bytes) == (450, 260)
    assert (first.kv_bytes, last.kv_bytes, made.kv_capacity_tokens) == (40, 20, 10)
    assert first.predicted_compute_s == (4 * 100 + 4 * 5) / 1000  # no embedding, KV at half the context
    assert last.predicted_compute_s == (2 * 100 + 60 + 2 * 5) / 1000
    links_s = 3 * 60e-6 + (4 + 8 + 4) / 1e9
    assert made.bound_tpot_s == pytest.approx(0.42 + 0.27 + links_s)
    assert made.predicted_tpot_s == pytest.approx(made.bound_tpot_s + 3 * HOP_SOFTWARE_S)
    assert made.binding == "compute of node w0"


def test_a_node_that_is_over_its_memory_gives_layers_away() -> None:
    even = plan(make_model(), make_cluster(450, 450, 450), WORKLOAD)
    assert counts(even) == [2, 2, 2]
    squeezed = plan(make_model(embedding_bytes=300), make_cluster(450, 450, 450), WORKLOAD)
    assert counts(squeezed) == [1, 2, 3]
    assert squeezed.binding == "memory of node w0"


def test_a_slow_link_binds() -> None:
    link = LinkSpec(source="w1", target="w0", latency_s=3.0, bandwidth_bytes_per_s=1e6)
    cluster = ClusterSpec(nodes=make_cluster(1000, 1000).nodes, links=(link,))
    made = plan(make_model(), cluster, WORKLOAD)
    assert made.binding == "link w0-w1"  # measured the other way round
    assert made.bound_tpot_s > 3.0


def test_the_order_can_be_pinned() -> None:
    made = plan(make_model(), make_cluster(4000, 2000), WORKLOAD, pinned_order=["w1", "w0"])
    assert [(stage.worker, stage.num_layers) for stage in made.stages] == [("w1", 2), ("w0", 4)]
    with pytest.raises(PlanError, match="must name each of"):
        plan(make_model(), make_cluster(4000, 2000), WORKLOAD, pinned_order=["w1"])


def test_kv_is_reserved_for_the_workload_but_never_beyond_the_models_context() -> None:
    made = plan(make_model(max_context=64), make_cluster(9000), WorkloadSpec(concurrency=3, context=1000))
    assert made.kv_capacity_tokens == 3 * 64


class TestInfeasible:
    def test_more_workers_than_layers(self) -> None:
        with pytest.raises(InfeasiblePlanError, match="3 workers but the model has 2 layers") as caught:
            plan(make_model(num_layers=2), make_cluster(999, 999, 999), WORKLOAD)
        assert caught.value.violations == ("3 workers but the model has 2 layers",)

    def test_no_workers(self) -> None:
        with pytest.raises(InfeasiblePlanError, match="no workers"):
            plan(make_model(), ClusterSpec(nodes=()), WORKLOAD)

    def test_too_much_context_says_which_would_fit(self) -> None:
        model, cluster = make_model(kv=10), make_cluster(550, 560)
        with pytest.raises(InfeasiblePlanError, match="1 x 60 tokens") as caught:
            plan(model, cluster, WorkloadSpec(context=60))
        assert "a context of 6 tokens would fit" in str(caught.value)
        assert plan(model, cluster, WorkloadSpec(context=6)).stages
        with pytest.raises(InfeasiblePlanError):
            plan(model, cluster, WorkloadSpec(context=7))

    def test_too_large_a_model_says_how_much_is_missing_and_where(self) -> None:
        model = make_model()
        with pytest.raises(InfeasiblePlanError) as caught:
            plan(model, make_cluster(300, 300), WORKLOAD)
        assert caught.value.violations == (
            "weights and KV cache need 770 bytes, all nodes have 600",
            "node w0 needs 380 bytes for layers 0-2, has 300",
            "node w1 needs 390 bytes for layers 3-5, has 300",
        )
        assert "context of" not in str(caught.value)  # no context would help
        assert "90 more bytes on each node would fit" in str(caught.value)
        assert plan(model, make_cluster(390, 390), WORKLOAD).stages
        with pytest.raises(InfeasiblePlanError):
            plan(model, make_cluster(389, 389), WORKLOAD)


@pytest.mark.parametrize(
    ("cluster", "workload", "match"),
    [
        (ClusterSpec(nodes=make_cluster(9).nodes * 2), WORKLOAD, "share a name"),
        (make_cluster(0), WORKLOAD, "positive memory"),
        (make_cluster(9999), WorkloadSpec(concurrency=0), "must be at least 1"),
    ],
)
def test_nonsense_is_a_plan_error(cluster: ClusterSpec, workload: WorkloadSpec, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        plan(make_model(), cluster, workload)


def test_explain_is_a_table_with_predictions_and_the_binding_constraint() -> None:
    model, cluster = make_model(), make_cluster(4000, 2000)
    text = explain(plan(model, cluster, WORKLOAD), model, cluster)
    lines = text.splitlines()
    assert lines[0].split() == ["worker", "layers", "ends", "weights", "KV", "memory", "compute"]
    assert lines[1].startswith("w0      0-3 (4)  embedding")
    assert lines[2].startswith("w1      4-5 (2)  head")
    assert "links: coordinator-w0 0.06 ms, w0-w1 0.06 ms, w1-coordinator 0.06 ms" in text
    assert lines[-1] == "bound by: compute of node w0"
    with pytest.raises(PlanError, match="w1, which is not in the cluster"):
        explain(plan(model, cluster, WORKLOAD), model, make_cluster(4000))
