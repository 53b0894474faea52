"""From the times of steps to a profile: what one layer, the head and a step itself take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import median
from typing import NamedTuple

from butterfly.specs import LayerProfile, TimeTable
from butterfly.worker.profile_points import Grid, Point


class Reading(NamedTuple):
    """Of clocks that only differences are taken of."""

    wall_s: float
    cpu_s: float  # of all threads of this process


ReadClocks = Callable[[], Reading]


def read_clocks() -> Reading:
    return Reading(time.perf_counter(), time.process_time())


class Times:
    """How long each point took, so far.

    The median stands for the runs of a point, since that is what serving on the same machine will see; the lower
    quartile, which disturbances hardly raise, was 15 % below it on a machine shared with others.
    A process that may not use its cores all the time stands still in the middle of whatever it does, so a short run
    takes either much less or much more than its share. There, a point takes its CPU time at the price that CPU time had
    over all runs.
    """

    def __init__(self, is_throttled: bool = False) -> None:
        self._is_throttled = is_throttled
        self._runs: dict[Point, list[Reading]] = defaultdict(list)
        self._wall_s = self._cpu_s = 0.0

    def add(self, point: Point, run: Reading) -> None:
        self._runs[point].append(run)
        self._wall_s += run.wall_s
        self._cpu_s += run.cpu_s

    def seconds(self, point: Point) -> float:
        """What this point takes. At least one run of it must have been added."""
        if not self._is_throttled or not self._cpu_s:
            return median(run.wall_s for run in self._runs[point])
        return median(run.cpu_s for run in self._runs[point]) * self._wall_s / self._cpu_s


class KindProfile(NamedTuple):
    """What was measured with one kind of layer."""

    layer: LayerProfile
    head: TimeTable
    step_s: float


def kind_profile(grid: Grid, times: Times, head_factor: float) -> KindProfile:
    """Take the parts of all steps of a grid apart. `head_factor`: how much larger the head is than the one measured."""
    step_s = _step_s(grid, times)
    layer_s = {
        count: max(0.0, times.seconds(grid.deep_decode(count)) - step_s) / grid.deep for count in grid.decode_counts
    }
    return KindProfile(
        layer=LayerProfile(
            decode=_decode_table(grid, times, layer_s),
            prefill=_table(
                grid.prefill_counts,
                grid.prefill_contexts,
                lambda count, context: (times.seconds(grid.prefill(count, context)) - step_s) / grid.prefill_layers,
            ),
        ),
        head=_table(
            grid.head_counts,
            [0],
            lambda count, _: (times.seconds(grid.head(count)) - step_s - layer_s[count]) * head_factor,
        ),
        step_s=step_s,
    )


def _step_s(grid: Grid, times: Times) -> float:
    """What a stage of no layers would take; nothing where only one layer could be held."""
    if grid.deep == 1:
        return 0.0
    one_s, deep_s = times.seconds(grid.one_layer()), times.seconds(grid.deep_decode(1))
    return min(max(0.0, one_s - (deep_s - one_s) / (grid.deep - 1)), one_s)


def _decode_table(grid: Grid, times: Times, layer_s: dict[int, float]) -> TimeTable:
    """Deep stages say what little context takes, shallow ones what more context adds to that."""
    least = grid.decode_contexts[0]

    def seconds(count: int, context: int) -> float:
        added_s = times.seconds(grid.decode(count, context)) - times.seconds(grid.decode(count, least))
        return layer_s[count] + added_s / grid.shallow

    return _table(grid.decode_counts, grid.decode_contexts, seconds)


def _table(counts: Sequence[int], contexts: Sequence[int], seconds: Callable[[int, int], float]) -> TimeTable:
    """More tokens or more context never take less: what noise says otherwise is raised to what was before."""
    rows: list[tuple[float, ...]] = []
    for context in contexts:
        row = list(accumulate((max(0.0, seconds(count, context)) for count in counts), max))
        rows.append(tuple(map(max, row, rows[-1])) if rows else tuple(row))
    return TimeTable(num_tokens=tuple(counts), contexts=tuple(contexts), seconds=tuple(rows))
