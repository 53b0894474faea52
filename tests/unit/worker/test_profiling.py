"""From runs to tables, on samples whose times follow a known formula."""

from __future__ import annotations

from itertools import pairwise

import pytest

from butterfly.specs import ComputeProfile, TimeTable
from butterfly.worker.profiling import Budget, NodeProfiler
from tests.unit.worker.slow_samples import Costs, World, request

MIB = 1 << 20
PLENTY = 16 << 30
NUM_POINTS = 5 + 5 * 4 + 4 * 2 + 3 + 1  # deep ones, decode, prefill, head, one layer
NUM_UNTIMED = 10  # before the first of each number of sequences: a deep step, and one of the contexts


def profile(
    world: World, *, memory_bytes: int = PLENTY, num_layers: int = 30, max_context: int = 4096
) -> ComputeProfile:
    profiler = NodeProfiler(world, memory_bytes, clocks=world.clocks)
    return profiler.profile(request(num_layers, max_context), lambda share: None)


def check_table(table: TimeTable, expected: dict[tuple[int, int], float]) -> None:
    found = {
        (count, context): seconds
        for context, row in zip(table.contexts, table.seconds, strict=True)
        for count, seconds in zip(table.num_tokens, row, strict=True)
    }
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("head_factor", [1.0, 3.5])
def test_steps_are_taken_apart_exactly(head_factor: float) -> None:
    costs = Costs()
    found = profile(World(costs, head_factor=head_factor))
    (layer,) = found.layers
    assert found.step_s == pytest.approx(costs.step_s)
    counts, contexts = (1, 2, 4, 8, 16), (16, 480, 512, 2048)
    check_table(layer.decode, {(n, c): costs.decode_s(n, c) for n in counts for c in contexts})
    check_table(layer.prefill, {(n, c): costs.prefill_s(n, c) for n in (16, 64, 256, 512) for c in (0, 512)})
    check_table(found.head, {(n, 0): costs.head_s(n) for n in (1, 4, 16)})


def test_each_kind_is_loaded_and_measured_and_the_head_only_once() -> None:
    world = World(scale=lambda layer: 1.0 + layer)
    reported: list[float] = []
    found = NodeProfiler(world, PLENTY, clocks=world.clocks).profile(request(layers=(0, 4, 5)), reported.append)
    assert [layer for layer, _ in world.loads] == [0, 4, 5]
    assert [max_head_bytes > 0 for _, max_head_bytes in world.loads] == [True, False, False]
    for layer, kind in zip((0, 4, 5), found.layers, strict=True):
        assert kind.decode.seconds[0][0] == pytest.approx(world.costs.decode_s(1, 16) * (1 + layer))
    assert world.num_given_back == 1
    assert all(a <= b for a, b in pairwise(reported))
    assert 0.0 <= reported[0] < 0.1
    assert reported[-1] == 1.0


def test_one_layer_alone_has_no_step_of_its_own() -> None:
    world = World()
    found = profile(world, num_layers=1)
    assert found.step_s == 0.0
    assert found.layers[0].decode.seconds[0][0] == pytest.approx(world.costs.step_s + world.costs.decode_s(1, 16))
    assert set(world.num_layers_run) == {1}


def test_weights_come_from_memory_where_the_model_is_larger_than_a_cache() -> None:
    world = World(layer_bytes=10 * MIB)
    profile(world)
    assert max(world.num_layers_run) == 26
    assert max(world.num_layers_run) * world.layer_bytes >= 256 * MIB


@pytest.mark.parametrize("memory_bytes", [100 * MIB, 60 * MIB, 1])
def test_what_memory_allows(memory_bytes: int) -> None:
    world = World(layer_bytes=10 * MIB)
    found = profile(world, memory_bytes=memory_bytes)
    assert max(world.num_layers_run) == max(1, memory_bytes // (20 * MIB))
    assert all(max_head_bytes == memory_bytes // 4 for _, max_head_bytes in world.loads)
    longest = found.layers[0].decode.contexts[-1]
    assert longest <= max(16, memory_bytes // 4 // (16 * world.kv_bytes_per_token))
    assert found.head.seconds[0][0] == pytest.approx(world.costs.head_s(1), rel=0.05)


@pytest.mark.parametrize("max_context", [1, 2, 16, 33, 100, 600, 1024, 2048])
def test_no_step_is_longer_than_the_context(max_context: int) -> None:
    (layer,) = profile(World(), max_context=max_context).layers
    assert layer.decode.contexts[-1] + 1 <= max_context
    assert layer.prefill.contexts[-1] + layer.prefill.num_tokens[-1] <= max_context
    for table in (layer.decode, layer.prefill):
        assert all(a < b for a, b in pairwise(table.contexts))
        assert {len(row) for row in table.seconds} == {len(table.num_tokens)}


def test_one_disturbed_run_changes_nothing() -> None:
    undisturbed = World()
    expected = profile(undisturbed)
    period = 71  # runs; no divisor of a round, so that it meets each point once at most
    world = World(disturb=lambda number, seconds: seconds + (0.5 if number > 100 and number % period == 0 else 0.0))
    found = profile(world)
    assert any(number % period == 0 for number in range(101, world.num_runs))
    assert found.step_s == pytest.approx(expected.step_s)
    assert found.layers[0].decode.seconds == tuple(pytest.approx(row) for row in expected.layers[0].decode.seconds)


def test_more_work_never_takes_less() -> None:
    world = World(disturb=lambda number, seconds: seconds * (1 + 0.3 * (number * 7919 % 13) / 13))
    found = profile(world)
    for table in (found.head, found.layers[0].decode, found.layers[0].prefill):
        assert all(a <= b for row in table.seconds for a, b in pairwise(row))
        assert all(a <= b for short, long in pairwise(table.seconds) for a, b in zip(short, long, strict=True))
        assert all(seconds >= 0 for row in table.seconds for seconds in row)


def test_a_slow_node_measures_less() -> None:
    slow = Costs(
        step_s=0.01,
        decode_s=lambda n, c: 0.02 * (1 + n / 8),
        prefill_s=lambda n, c: 0.008 * n,
        head_s=lambda n: 0.05 * n,
    )
    world = World(slow, layer_bytes=100 * MIB)
    began_s = world.now_s
    found = profile(world)
    (layer,) = found.layers
    assert layer.decode.num_tokens == (1, 2, 4)
    assert layer.prefill.num_tokens == (16, 64)
    check_table(layer.prefill, {(n, c): slow.prefill_s(n, c) for n in (16, 64) for c in (0, 512)})
    assert found.head.num_tokens == (1, 4)
    assert world.now_s - began_s < 7.0


def test_rounds_end_when_the_time_is_up() -> None:
    quick, slow = World(), World(Costs(step_s=0.1))
    for world in (quick, slow):
        found = profile(world)
        assert found.step_s == pytest.approx(world.costs.step_s)
        assert world.now_s - 100.0 < 7.0
    num_rounds, rest = divmod(quick.num_runs - NUM_POINTS, NUM_POINTS + NUM_UNTIMED)
    assert rest == 0
    assert Budget().min_rounds < num_rounds <= Budget().max_rounds


@pytest.mark.parametrize("is_throttled", [True, False])
def test_a_quota_is_a_price_of_cpu_time(is_throttled: bool) -> None:
    """The process stands still for a while when it has used up a period's quota, whatever it is doing then."""
    used_s = 0.0

    def stand_still(number: int, seconds: float) -> float:
        nonlocal used_s
        periods_before, used_s = int(used_s / 0.05), used_s + seconds
        return seconds + 0.05 * (int(used_s / 0.05) - periods_before)  # half of the time

    world = World(disturb=stand_still)
    found = NodeProfiler(world, PLENTY, is_throttled=is_throttled, clocks=world.clocks).profile(
        request(), lambda share: None
    )
    (layer,) = found.layers
    ratios = [
        seconds / world.costs.decode_s(count, context)
        for context, row in zip(layer.decode.contexts, layer.decode.seconds, strict=True)
        for count, seconds in zip(layer.decode.num_tokens, row, strict=True)
    ]
    if is_throttled:
        assert ratios == [pytest.approx(2.0, rel=0.05)] * len(ratios)
    else:
        assert max(ratios) / min(ratios) > 1.2  # what the median makes of it


class Interrupted(Exception):
    pass


def test_an_interruption_passes_through_and_gives_memory_back() -> None:
    world, num_calls = World(), 0

    def interrupt(share: float) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        NodeProfiler(world, PLENTY, clocks=world.clocks).profile(request(), interrupt)
    assert world.num_runs < 5
    assert world.num_given_back == 1
