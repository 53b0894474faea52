"""Predictions of small pipelines against sums done by hand."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.partitioning.predicting import predict, tokens_per_s, ttft_s
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import (
    ClusterSpec,
    ComputeProfile,
    LayerProfile,
    LinkSpec,
    NodeSpec,
    Plan,
    TimeTable,
    WorkloadSpec,
)
from tests.unit.partitioning.shapes import make_model

MODEL = msgspec.structs.replace(make_model(num_layers=4, max_context=4096), activation_bytes_per_token=1)
WORKLOAD = WorkloadSpec(concurrency=4, context=100, prompt_tokens=64, max_num_batched_tokens=16)


def line(base_s: float, per_token_s: float) -> TimeTable:
    return TimeTable(num_tokens=(1, 2), contexts=(0,), seconds=((base_s + per_token_s, base_s + 2 * per_token_s),))


def node(
    name: str, layer_s: float, *, per_token_s: float = 0.0, step_s: float = 0.5, memory_bytes: int = 10**6
) -> NodeSpec:
    """A layer takes `layer_s` for a step and `per_token_s` for each token of a prompt; the head takes 1."""
    layer = LayerProfile(decode=line(layer_s, 0.0), prefill=line(layer_s, per_token_s))
    profile = ComputeProfile(layers=(layer,), head=line(1.0, 0.0), step_s=step_s)
    return NodeSpec(name=name, memory_bytes=memory_bytes, memory_bandwidth_bytes_per_s=1e3, profile=profile)


def links(*names: str, latency_s: float = 0.1, bandwidth: float = 80.0) -> tuple[LinkSpec, ...]:
    return tuple(
        LinkSpec(source=a, target=b, latency_s=latency_s, bandwidth_bytes_per_s=bandwidth, software_s=0.01)
        for a in (*names, "coordinator")
        for b in (*names, "coordinator")
        if a != b
    )


TWO = ClusterSpec(nodes=(node("w0", 1.0), node("w1", 2.0)), links=links("w0", "w1"))
SPLIT = Placement((0, 1), (3, 4))


def predicted(cluster: ClusterSpec = TWO, placement: Placement = SPLIT, workload: WorkloadSpec = WORKLOAD) -> Plan:
    return predict(Problem.of(MODEL, cluster, workload), placement, workload)


def test_a_token_takes_all_stages_and_all_hops() -> None:
    made = predicted()
    hops = [0.11 + 4 / 80, 0.11 + 8 / 80, 0.11 + 4 / 80]
    assert [stage.predicted_compute_s for stage in made.stages] == pytest.approx([3.5, 0.5 + 2.0 + 1.0])
    assert [*(stage.predicted_hop_s for stage in made.stages), made.return_hop_s] == pytest.approx(hops)
    assert made.predicted_tpot_s == pytest.approx(7.0 + sum(hops))


def test_the_bound_is_what_memory_and_wires_take() -> None:
    kv = 50  # one byte per layer and token, at half the context
    reads = [(300 + 3 * kv) / 1e3, (100 + 60 + kv) / 1e3]
    assert predicted().bound_tpot_s == pytest.approx(sum(reads) + 0.3 + 16 / 80)
    fast = msgspec.structs.replace(TWO.nodes[0], memory_bandwidth_bytes_per_s=1.0)
    slow_memory = msgspec.structs.replace(TWO, nodes=(fast, TWO.nodes[1]))
    assert predicted(slow_memory).bound_tpot_s == pytest.approx(3.5 + reads[1] + 0.3 + 16 / 80)  # measured, so possible


def test_memory_of_a_stage_is_weights_cache_and_activations() -> None:
    first, last = predicted().stages
    assert (first.weight_bytes, first.kv_bytes, first.activation_bytes) == (50 + 300, 3 * 400, 16)
    assert (last.weight_bytes, last.kv_bytes, last.activation_bytes) == (100 + 60, 400, 16)
    assert first.num_bytes == 350 + 1200 + 16
    assert predicted().kv_capacity_tokens == 400


def test_streams_keep_all_stages_busy_unless_the_trip_is_longer() -> None:
    problem = Problem.of(MODEL, TWO, msgspec.structs.replace(WORKLOAD, concurrency=64))
    made = predict(problem, SPLIT, WORKLOAD)
    trip_s = 7.0 + 0.33 + (32 * 8 + 2 * 32 * 4) / 80
    assert trip_s > 2 * 3.5
    assert tokens_per_s(problem, made.stages) == pytest.approx(64 / trip_s)
    fast_links = msgspec.structs.replace(TWO, links=links("w0", "w1", latency_s=0.0, bandwidth=1e12))
    slower = Placement((0, 1), (2, 4))  # the second stage takes 5.5, the first 2.5
    problem = Problem.of(MODEL, fast_links, WORKLOAD)
    assert tokens_per_s(problem, predict(problem, slower, WORKLOAD).stages) == pytest.approx(4 / 11)


def test_a_single_stream_uses_one_slot() -> None:
    alone = msgspec.structs.replace(WORKLOAD, concurrency=1)
    made = predicted(workload=alone)
    assert made.predicted_tokens_per_s == pytest.approx(1 / made.predicted_tpot_s)


def test_a_prompt_passes_the_stages_in_the_chunks_that_end_earliest() -> None:
    nodes = tuple(node(name, 0.001, per_token_s=0.01, step_s=0.0) for name in ("w0", "w1"))
    free = ClusterSpec(nodes=nodes, links=links("w0", "w1", latency_s=0.0, bandwidth=1e12))
    problem = Problem.of(MODEL, free, WORKLOAD)
    stages = predict(problem, Placement((0, 1), (2, 4)), WORKLOAD).stages
    chunk_s = 2 * (0.001 + 16 * 0.01)  # two layers, 16 tokens
    expected = 5 * chunk_s + 1.0 + 3 * 0.01  # four chunks through two stages; the head; software of the hops
    assert ttft_s(problem, stages, 64) == pytest.approx(expected)


def test_what_binds_is_the_full_memory_of_a_faster_node_or_what_takes_longest() -> None:
    assert predicted().binding == "compute of node w0"
    slow = msgspec.structs.replace(TWO, links=links("w0", "w1", latency_s=9.0))
    assert predicted(slow).binding == "link w0-w1"
    full = msgspec.structs.replace(TWO, nodes=(node("w0", 1.0, memory_bytes=1566 + 499), TWO.nodes[1]))
    assert predicted(full).binding == "memory of node w0"  # 500 for another layer and its cache


def test_nodes_without_layers_are_named() -> None:
    assert predicted(placement=Placement((1,), (4,))).left_out == ("w0",)


@pytest.mark.parametrize(
    ("context", "mean_context", "max_context", "expected"),
    [
        (100, 0, 1000, 50),
        (4096, 0, 1 << 20, 512),  # a long context is asked for to be safe
        (4096, 3000, 1 << 20, 3000),
        (100, 3000, 1000, 100),  # no sequence is longer than the longest
        (5000, 0, 600, 300),
    ],
)
def test_the_context_that_decode_is_timed_at(context: int, mean_context: int, max_context: int, expected: int) -> None:
    workload = WorkloadSpec(context=context, mean_context=mean_context)
    assert workload.context_for_times(max_context) == expected
