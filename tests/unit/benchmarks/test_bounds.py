"""Bounds worked out by hand."""

from __future__ import annotations

import pytest
from benchmarks.bounds import (
    Cluster,
    ModelCosts,
    NodeSpeed,
    Pass,
    Path,
    best_cut,
    cut,
    decode_s,
    flow_shop_s,
    hop_wire_s,
    load_s,
    prefill_s,
    stage_s,
    throughput_per_s,
    trip_s,
)

from butterfly.models import open_model

# Four layers of 1 MB and 2 M weights, a head of 2 MB; no attention arithmetic unless a test asks for it.
COSTS = ModelCosts(
    layer_bytes=(1_000_000,) * 4,
    layer_params=(2_000_000,) * 4,
    head_bytes=2_000_000,
    head_params=4_000_000,
    kv_bytes_per_token=(1_000,) * 4,
    attention_width=0,
    hidden_bytes_per_token=1_000,
)
NODE = NodeSpeed(bandwidth_bytes_per_s=1e9, flops_per_s=1e12)  # bytes bind: 1 ms per layer
SLOW_SUMS = NodeSpeed(bandwidth_bytes_per_s=1e15, flops_per_s=1e9)  # arithmetic binds: 4 ms per layer and row
PATH = Path(delay_s=0.005, rate_bytes_per_s=1e6)  # 1 ms for a hidden state


def test_a_stage_reads_weights_and_kv_at_the_memorys_bandwidth() -> None:
    [whole] = cut(COSTS, [4])
    assert stage_s(whole, NODE, Pass.decode(1, context=0)) == pytest.approx(0.006)
    assert stage_s(whole, NODE, Pass.decode(2, context=500)) == pytest.approx(0.006 + 0.004)


def test_a_stage_computes_at_the_rate_of_its_products() -> None:
    [whole] = cut(COSTS, [4])
    assert stage_s(whole, SLOW_SUMS, Pass.decode(3, context=0)) == pytest.approx(3 * (0.016 + 0.008))
    no_sample = Pass.chunk(past=0, rows=3, is_last=False)
    assert stage_s(whole, SLOW_SUMS, no_sample) == pytest.approx(3 * 0.016)


def test_attention_counts_pairs_of_positions() -> None:
    chunk = Pass.chunk(past=100, rows=10, is_last=False)
    assert (chunk.cached_tokens, chunk.pairs) == (110, 10 * 105)


def test_the_best_cut_counts_the_head() -> None:
    assert [stage.layer_bytes + stage.head_bytes for stage in best_cut(COSTS, 2)] == [3_000_000, 3_000_000]


def test_a_cut_must_use_every_layer() -> None:
    with pytest.raises(ValueError, match="4 layers"):
        cut(COSTS, [2, 1])


def test_one_streams_token_passes_all_stages_and_comes_back() -> None:
    two = Cluster((NODE, NODE), PATH)
    out, back = 0.005 + 0.001, 0.005 + 0.000004
    assert decode_s(COSTS, two, num_streams=1, context=0) == pytest.approx(0.006 + out + back)
    assert trip_s(COSTS, best_cut(COSTS, 2), two, 1, 0) == pytest.approx(0.006 + out + back)


def test_one_node_has_no_wire() -> None:
    assert decode_s(COSTS, Cluster((NODE,)), num_streams=1, context=0) == pytest.approx(0.006)


def test_several_nodes_need_a_path() -> None:
    with pytest.raises(ValueError, match="path"):
        Cluster((NODE, NODE))


def test_frames_are_sent_twice_by_a_switch_that_stores_them() -> None:
    stored = Path(delay_s=0.005, rate_bytes_per_s=1e6, frame_bytes=500)
    assert stored.crossing_s(1_000) == pytest.approx(0.005 + 0.001 + 0.0005)
    assert stored.crossing_s(100) == pytest.approx(0.005 + 0.0001 + 0.0001)


def test_streams_share_one_reading_of_the_weights_or_keep_both_stages_busy() -> None:
    near = Cluster((NODE, NODE), Path(delay_s=0.0, rate_bytes_per_s=1e12))
    # one batch: 3 + 3 ms for both streams; two batches: each stage reads its 3 MB twice. Equal, 6 ms.
    assert decode_s(COSTS, near, num_streams=2, context=0) == pytest.approx(0.006, rel=1e-3)
    # with arithmetic, two batches of one row: 12 ms per stage and row
    sums = Cluster((SLOW_SUMS, SLOW_SUMS), near.path)
    assert decode_s(COSTS, sums, num_streams=2, context=0) == pytest.approx(0.024, rel=1e-3)


def test_a_share_of_the_processor_binds_only_a_stage_that_needs_more_of_it() -> None:
    far = Path(delay_s=0.1, rate_bytes_per_s=1e12)
    half = NodeSpeed(1e9, 1e12, cpu_share=0.5)
    full = decode_s(COSTS, Cluster((NODE, NODE), far), 1, 0)
    assert decode_s(COSTS, Cluster((half, half), far), 1, 0) == pytest.approx(full)
    assert decode_s(COSTS, Cluster((half,)), 1, 0) == pytest.approx(0.012)


def test_flow_shop_overlaps_stages_and_links() -> None:
    # stages 2 and 3 s, link 1 s, no lag: the second stage starts at 3 and does two chunks
    assert flow_shop_s([[2, 3], [2, 3]], [(1, 0), (1, 0)]) == 3 + 6
    # a lag delays the first chunk only
    assert flow_shop_s([[2, 3], [2, 3]], [(1, 10), (1, 10)]) == 13 + 6
    # a slow link becomes the bottleneck
    assert flow_shop_s([[1, 1]] * 3, [(5, 0)] * 3) == 1 + 3 * 5 + 1


def test_prefill_of_one_node_is_arithmetic_over_rate() -> None:
    # 512 rows of 4 layers, and the head once
    assert prefill_s(COSTS, Cluster((SLOW_SUMS,)), 512) == pytest.approx(512 * 0.016 + 0.008)


def test_prefill_of_two_equal_nodes_is_filled_by_small_chunks() -> None:
    headless = ModelCosts((1,) * 4, (2_000_000,) * 4, 0, 0, (0,) * 4, 0, hidden_bytes_per_token=1)
    near = Cluster((SLOW_SUMS, SLOW_SUMS), Path(delay_s=0.0, rate_bytes_per_s=1e15))
    # 8 ms per row and stage; 32 chunks of 16 rows, and one more to fill the pipeline
    assert prefill_s(headless, near, 512) == pytest.approx(33 * 16 * 0.008)


def test_throughput_is_bound_by_decode_or_by_the_arithmetic_of_prompts() -> None:
    assert throughput_per_s(COSTS, Cluster((NODE,)), 1, input_tokens=0, output_tokens=2) == pytest.approx(
        1 / 0.00601, rel=0.01
    )
    # an output and its share of the prompt, 2 + 1 rows through the layers, one through the head
    sums = throughput_per_s(COSTS, Cluster((SLOW_SUMS,)), 1, input_tokens=2, output_tokens=1)
    assert sums == pytest.approx(1 / (3 * 0.016 + 0.008))


def test_weights_load_at_the_memorys_bandwidth() -> None:
    assert load_s(COSTS, Cluster((NODE,))) == pytest.approx(0.006)


def test_the_wire_of_a_hop_is_shared_by_all_messages_of_a_step() -> None:
    two = Cluster((NODE, NODE), PATH)
    assert hop_wire_s(COSTS, two) == pytest.approx((0.006 + 0.005004) / 3)
    assert hop_wire_s(COSTS, Cluster((NODE,))) == 0


def test_costs_of_a_model_are_its_stored_bytes() -> None:
    from benchmarks.bounds import model_costs

    model = open_model("random:llama,hidden=64,layers=2,bits=4")
    costs = model_costs(model)
    stored = sum(entry.num_bytes for name, entry in model.tensors.items() if name.startswith("layers."))
    assert sum(costs.layer_bytes) == stored
    assert costs.num_layers == 2
    assert costs.hidden_bytes_per_token == 128
