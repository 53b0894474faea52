"""Times from tables and from rates."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.partitioning import costs
from butterfly.specs import ClusterSpec, ComputeProfile, LayerProfile, LinkSpec, NodeSpec, TimeTable
from tests.unit.partitioning.shapes import make_model

TABLE = TimeTable(num_tokens=(1, 4, 16), contexts=(0, 100), seconds=((1.0, 4.0, 10.0), (2.0, 5.0, 20.0)))


@pytest.mark.parametrize(
    ("num_tokens", "context", "seconds"),
    [
        (1, 0, 1.0),
        (16, 100, 20.0),
        (2, 0, 2.0),  # a third of the way from 1 to 4
        (10, 0, 7.0),
        (1, 50, 1.5),
        (4, 25, 4.25),
        (28, 0, 16.0),  # the line of the last two goes on
        (1, 200, 3.0),
        (28, 200, 54.0),  # 16 and 35, and the line between them goes on
    ],
)
def test_between_and_beyond_the_points_times_are_straight_lines(num_tokens: int, context: int, seconds: float) -> None:
    assert costs.interpolate(TABLE, num_tokens, context) == pytest.approx(seconds)


def test_a_table_with_one_point_says_the_same_everywhere() -> None:
    table = TimeTable(num_tokens=(4,), contexts=(0,), seconds=((3.0,),))
    assert [costs.interpolate(table, n, context) for n, context in ((1, 0), (4, 9), (64, 512))] == [3.0] * 3


def test_noise_never_makes_more_work_free() -> None:
    falling = TimeTable(num_tokens=(1, 2), contexts=(0,), seconds=((2.0, 1.0),))
    assert costs.interpolate(falling, 100, 0) == 1.0
    rising_fast = TimeTable(num_tokens=(4, 5), contexts=(0,), seconds=((1.0, 3.0),))
    assert costs.interpolate(rising_fast, 1, 0) == 0.0


def profiled_node() -> NodeSpec:
    def table(seconds: float) -> TimeTable:
        return TimeTable(num_tokens=(1,), contexts=(0,), seconds=((seconds,),))

    layers = tuple(LayerProfile(decode=table(second), prefill=table(10 * second)) for second in (1.0, 2.0))
    profile = ComputeProfile(layers=layers, head=table(5.0), step_s=0.5)
    return NodeSpec(name="w0", memory_bytes=1, memory_bandwidth_bytes_per_s=1.0, profile=profile)


def test_a_profiled_node_answers_from_the_tables_of_the_layers_kind() -> None:
    model = msgspec.structs.replace(make_model(3), layer_kinds=(0, 1, 0))
    node = profiled_node()
    assert [costs.layer_s(node, model, layer, 1, 0) for layer in range(3)] == [1.0, 2.0, 1.0]
    assert costs.layer_s(node, model, 1, 1, 0, is_prompt=True) == 20.0
    assert (costs.head_s(node, model, 1), costs.step_s(node)) == (5.0, 0.5)


def test_a_node_that_was_not_profiled_reads_weights_and_caches_once() -> None:
    model = make_model(2, layer_bytes=1000, head_bytes=300, kv=2)
    node = NodeSpec(name="w0", memory_bytes=1, memory_bandwidth_bytes_per_s=100.0)
    assert costs.layer_s(node, model, 0, 1, 50) == pytest.approx((1000 + 2 * 50) / 100)
    assert costs.layer_s(node, model, 0, 4, 50) == pytest.approx((1000 + 4 * 2 * 50) / 100)  # four caches
    assert costs.layer_s(node, model, 0, 4, 50, is_prompt=True) == pytest.approx((1000 + 2 * 50) / 100)  # one
    assert costs.layer_s(node, model, 0, 64, 0) == pytest.approx(2 * 1000 / 100)  # twice 32 rows
    assert (costs.head_s(node, model, 1), costs.step_s(node)) == (3.0, 0.0)


def test_a_known_arithmetic_rate_binds_where_it_is_slower() -> None:
    model = msgspec.structs.replace(make_model(1, layer_bytes=1000, head_bytes=10), num_layer_params=(2000,))
    node = NodeSpec(name="w0", memory_bytes=1, memory_bandwidth_bytes_per_s=100.0, flops_per_s=4000.0)
    assert costs.layer_s(node, model, 0, 1, 0) == pytest.approx(10.0)
    assert costs.layer_s(node, model, 0, 100, 0) == pytest.approx(2 * 2000 * 100 / 4000)


def test_a_link_is_as_measured_or_as_its_other_direction_or_loopback() -> None:
    link = LinkSpec(source="a", target="b", latency_s=0.1, bandwidth_bytes_per_s=100.0, software_s=0.01)
    cluster = ClusterSpec(nodes=(), links=(link,))
    assert costs.find_link(cluster, "a", "b") == costs.find_link(cluster, "b", "a") == link
    assert costs.find_link(cluster, "a", "c").latency_s == costs.LOOPBACK_LATENCY_S
    assert costs.hop_s(link, 50) == pytest.approx(0.1 + 0.5 + 0.01)
    assert costs.link_s(link, 50) == pytest.approx(0.6)
