from __future__ import annotations

from butterfly.worker.profile_points import make_grid
from tests.unit.worker.slow_samples import request

MIB = 1 << 20


def test_a_round_has_every_point_once() -> None:
    grid = make_grid(request(num_layers=40).model, 4 * MIB, 1024, 1 << 34, with_head=True)
    points = [point for point, is_timed in grid.round() if is_timed]
    columns = [grid.decode_column(count) for count in grid.decode_counts]
    columns += [grid.prefill_column(count) for count in grid.prefill_counts]
    assert sorted(points) == sorted(point for column in columns for point in column)
    assert len(set(points)) == len(points)


def test_each_point_finds_the_cache_as_it_should() -> None:
    grid = make_grid(request(num_layers=40).model, 4 * MIB, 1024, 1 << 34, with_head=True)
    turns = grid.round()
    points = [turn.point for turn in turns]
    deep = [index for index, point in enumerate(points) if point.num_layers == grid.deep]
    assert deep[0] == 0
    assert [turns[index].is_timed for index in deep] == [False, True] * len(grid.decode_counts)
    assert all(points[index] == points[index + 1] for index in deep[::2])
    just_after = {points[index + 1] for index in deep[1::2]}
    assert just_after == {grid.one_layer(), *(grid.head(count) for count in (1, 4, 16)), grid.prefill(16, 0)}
    for count in grid.decode_counts:
        first = next(index for index, turn in enumerate(turns) if turn.point == grid.decode(count, 16))
        assert points[first + 1 : first + 5] == [grid.decode(count, context) for context in grid.decode_contexts]
        assert [turn.is_timed for turn in turns[first : first + 5]] == [False, True, True, True, True]


def test_large_layers_are_measured_alone_but_for_two() -> None:
    grid = make_grid(request(num_layers=40).model, 400 * MIB, 4096, 1 << 34, with_head=False)
    assert (grid.deep, grid.shallow, grid.prefill_layers) == (2, 1, 1)
    assert grid.head_counts == []
