"""What explain says of plans made by hand: figures, boundaries, nodes left out."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.errors import PlanError
from butterfly.partitioning.explain import explain, placement_of, planned_workload
from butterfly.partitioning.predicting import predict
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import ClusterSpec, LayerPin, LinkSpec, ModelFootprint, Plan, PlanConstraints, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

FREE = PlanConstraints()
WORKLOAD = WorkloadSpec(concurrency=2, context=10, max_num_batched_tokens=4)
MODEL = msgspec.structs.replace(make_model(), activation_bytes_per_token=5)


def planned(
    nodes: tuple[int, ...],
    ends: tuple[int, ...],
    cluster: ClusterSpec,
    model: ModelFootprint = MODEL,
    workload: WorkloadSpec = WORKLOAD,
) -> Plan:
    """As if it had been proven to be the best."""
    problem = Problem.of(model, cluster, workload)
    placement = Placement(nodes, ends)
    return predict(problem, placement, workload, problem.evaluate(placement).cost_s)


def lines_of(made: Plan, cluster: ClusterSpec, constraints: PlanConstraints = FREE) -> list[str]:
    return explain(made, MODEL, cluster, constraints).splitlines()


def test_the_table_and_the_figures() -> None:
    cluster = make_cluster(4000, 2000, bandwidth=1e5)
    made = planned((0, 1), (4, 6), cluster)
    headings, first, second, back, *figures = lines_of(made, cluster)
    assert headings.split()[:4] == ["node", "layers", "ends", "weights"]
    assert first.split("  ")[0] == "w0"
    for cell in ("0-3 (4)", "embedding", "450 B", "80 B", "20 B", "14% of 4.00 kB", "4.20 ms", "0.46 ms"):
        assert cell in first
    assert "4-5 (2)" in second
    assert "head" in second
    assert back.split() == ["(back)", "0.46", "ms"]
    assert figures[:7] == [
        f"TTFT: {made.predicted_ttft_s * 1e3:.2f} ms for a prompt of 10 tokens",
        "TPOT: 8.28 ms: 6.90 ms of compute, 1.38 ms of links and software",
        "bound: 7.08 ms by memory and links alone, 86% of the TPOT",
        f"throughput: {made.predicted_tokens_per_s:.1f} tokens/s with 2 streams",
        "KV cache: 20 tokens on every stage",
        "objective latency: 8.28 ms for a token, proven optimal",
        "bound by: compute of node w0",
    ]


def test_a_gap_and_the_cost_of_constraints_are_said() -> None:
    cluster = make_cluster(4000, bandwidth=1e5)
    made = msgspec.structs.replace(planned((0,), (6,), cluster), gap=0.034, pin_cost_s=0.002, objective="throughput")
    text = explain(made, MODEL, cluster)
    assert "for each token of all streams, another plan might save 3.4 % of it at most" in text
    assert "the constraints cost 2.00 ms of that" in text
    assert "proven" not in text


def test_a_full_memory_is_why_a_boundary_is_where_it_is() -> None:
    fast, slow = make_cluster(400, 4000, bandwidth=1e5).nodes
    cluster = ClusterSpec(nodes=(fast, msgspec.structs.replace(slow, memory_bandwidth_bytes_per_s=5e4)))
    made = planned((0, 1), (2, 6), cluster)
    [boundary] = [line for line in lines_of(made, cluster) if line.startswith("boundary")]
    assert boundary == (
        "boundary w0 | w1 before layer 2: "
        "layer 2 on w0 does not fit (90 B of 400 B free, it needs 120 B more); "
        "layer 1 on w1 would make a token 1.05 ms slower"
    )


def test_a_stage_of_one_layer_would_be_gone() -> None:
    cluster = make_cluster(1000, 1000, bandwidth=1e5)
    made = planned((0, 1), (5, 6), cluster)
    [boundary] = [line for line in lines_of(made, cluster) if line.startswith("boundary")]
    assert "layer 5 on w0, without w1, would make a token 0.46 ms faster" in boundary
    assert "layer 4 on w1 would make a token neither faster nor slower" in boundary
    model = msgspec.structs.replace(MODEL, head_bytes=500)
    crowded = planned((0, 1), (5, 6), cluster, model)
    assert "layer 5 on w0, without w1, does not fit" in explain(crowded, model, cluster)


def test_balance_is_why_under_throughput() -> None:
    cluster = make_cluster(4000, 4000, bandwidth=1e5)
    workload = msgspec.structs.replace(WORKLOAD, objective="throughput")
    made = planned((0, 1), (3, 6), cluster, make_model(embedding_bytes=0, head_bytes=0), workload)
    text = explain(made, make_model(embedding_bytes=0, head_bytes=0), cluster)
    assert text.count("would make each token of all streams") == 2
    assert "faster" not in text


def test_pinned_boundaries() -> None:
    cluster = make_cluster(1000, 1000, bandwidth=1e5)
    made = planned((0, 1), (5, 6), cluster)
    pins = PlanConstraints(layers=(LayerPin(node="w1", start=5, end=6),))
    assert lines_of(made, cluster, pins)[-1] == "boundary w0 | w1 before layer 5: the layers of w1 are pinned"


def test_each_node_left_out_has_its_reason() -> None:
    far = LinkSpec(source="w0", target="w2", latency_s=0.02, bandwidth_bytes_per_s=1e6)
    cluster = make_cluster(9000, 9000, 9000, 60, bandwidth=1e5)
    cluster = msgspec.structs.replace(cluster, links=(far,))
    made = planned((0,), (6,), cluster)
    assert made.left_out == ("w1", "w2", "w3")
    assert lines_of(made, cluster, PlanConstraints(exclude=("w1",)))[-3:] == [
        "left out w1: excluded",
        "left out w2: beside the others it would make a token 20.41 ms slower",
        "left out w3: too small: a stage of layer 0 needs 140 B, it has 60 B",
    ]
    assert "left out w1: beside the others it would make a token 0.46 ms slower" in lines_of(made, cluster)


def test_a_node_left_out_by_a_limit() -> None:
    slow, quick = make_cluster(9000, 9000, bandwidth=1e5).nodes
    quick = msgspec.structs.replace(quick, memory_bandwidth_bytes_per_s=2e5)
    cluster = ClusterSpec(nodes=(quick, slow))
    made = planned((0,), (6,), cluster)
    assert lines_of(made, cluster, PlanConstraints(max_nodes=1))[-1] == (
        "left out w0: at most 1 nodes are to be used, and in another's place it would make a token 3.45 ms slower"
    )
    tight = ClusterSpec(nodes=(quick, msgspec.structs.replace(slow, memory_bytes=200)))
    assert "no place among the others suits its memory" in explain(
        planned((0,), (6,), tight), MODEL, tight, PlanConstraints(max_nodes=1)
    )


def test_the_plan_tells_what_it_was_made_for() -> None:
    cluster = make_cluster(4000, 2000)
    made = planned((0, 1), (4, 6), cluster)
    assert planned_workload(made, MODEL) == msgspec.structs.replace(WORKLOAD, prompt_tokens=10, mean_context=5)
    assert placement_of(made, Problem.of(MODEL, cluster, WORKLOAD)) == Placement((0, 1), (4, 6))


def test_a_plan_for_another_cluster_is_an_error() -> None:
    made = planned((0, 1), (4, 6), make_cluster(4000, 2000))
    with pytest.raises(PlanError, match="w1, which is not in the cluster"):
        explain(made, MODEL, make_cluster(4000))
