"""Where to cut the layers, exactly: for layers that differ, for pins, and for orders of nodes that are given.

A stage that holds the layers [s, e) takes running sum e minus running sum s, so its best beginning s is a minimum over
a window of s: from where memory, ceiling and pins allow it, up to e.
"""

from __future__ import annotations

import numpy

from butterfly.partitioning.objective import Array
from butterfly.partitioning.problem import Placement, Problem
from butterfly.partitioning.subsets import Indices, first_smallest


class Windows:
    """From which layer on the stage of a node may begin when it ends before layer e: [lows[e], highs[e])."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        ends = numpy.arange(problem.num_layers + 1)
        self._lows = numpy.zeros((problem.num_nodes, len(ends)), dtype=numpy.intp)
        self._highs = numpy.tile(ends, (problem.num_nodes, 1))
        for node, (start, end) in problem.pins.items():
            self._lows[node] = start
            self._highs[node] = numpy.where(ends == end, start + 1, 0)

    def of(
        self, nodes: Indices, ceilings_s: Array, num_stages: int, *, is_first: bool = False, is_last: bool = False
    ) -> tuple[Indices, Indices]:
        """[row, end] lows and highs of the stages of `nodes` [row] under ceilings [row]; empty: low >= high."""
        problem, batch = self._problem, self._problem.costs(num_stages)
        room = problem.capacity - problem.stage_bytes - is_first * problem.first_bytes - is_last * problem.last_bytes
        by_memory = numpy.searchsorted(
            problem.layer_ends_bytes, problem.layer_ends_bytes[None, :] - room[nodes][:, None], side="left"
        )
        room_s = ceilings_s - batch.step_s[nodes] - is_last * batch.head_s[nodes]
        sums_s = batch.layer_ends_s[nodes]
        by_time = num_below(sums_s, sums_s - room_s[:, None])
        lows = numpy.maximum(numpy.maximum(by_memory, by_time), self._lows[nodes])
        highs = self._highs[nodes]
        return lows, numpy.minimum(highs, 1) if is_first else highs


def num_below(values: Array, limits: Array) -> Indices:
    """[row, limit]: how many values[row], which ascend, are less than the limit."""
    rows, length = numpy.arange(len(values))[:, None], values.shape[1]
    count = numpy.zeros(limits.shape, dtype=numpy.intp)
    for power in reversed(range(length.bit_length())):
        more = count + 2**power
        is_below = (more <= length) & (values[rows, numpy.minimum(more, length) - 1] < limits)
        count = numpy.where(is_below, more, count)
    return count


def window_min(values: Array, lows: Indices, highs: Indices) -> Array:
    """[row, end] minimum of values[row, low:high]; infinite where that is empty. Bounds may have a single row.

    By minima over runs of 1, 2, 4, ... values: two runs cover any window.
    """
    num_rows, length = values.shape
    runs = [values]
    while 2 ** len(runs) <= length:
        half = 2 ** (len(runs) - 1)
        longer = numpy.full_like(values, numpy.inf)
        longer[:, :-half] = numpy.minimum(runs[-1][:, :-half], runs[-1][:, half:])
        runs.append(longer)
    widths = highs - lows
    power = numpy.frexp(numpy.maximum(widths, 1))[1] - 1  # of two, at most the width
    rows, table = numpy.arange(num_rows)[:, None], numpy.stack(runs)
    left = table[power, rows, numpy.minimum(lows, length - 1)]
    right = table[power, rows, numpy.maximum(highs - 2**power, 0)]
    return numpy.where(widths > 0, numpy.minimum(left, right), numpy.inf)


class Cuts:
    """The best cuts for orders of nodes that are given."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._windows = Windows(problem)

    def trips_s(self, orders: Indices, ceilings_s: Array) -> Array:
        """[order] the shortest trip of each order [order, stage] with no stage above its ceiling; infinite: none."""
        return self._tables(orders, ceilings_s)[-1][:, self._problem.num_layers]

    def placement(self, order: tuple[int, ...], ceiling_s: float) -> Placement | None:
        """The placement of that trip; of equally short ones, that with the earliest cuts from the back."""
        num_layers, batch = self._problem.num_layers, self._problem.costs(len(order))
        orders, ceilings_s = numpy.array([order], dtype=numpy.intp), numpy.array([ceiling_s])
        tables = self._tables(orders, ceilings_s)
        if numpy.isinf(tables[-1][0, num_layers]):
            return None
        ends = [num_layers]
        for stage in range(len(order) - 1, 0, -1):
            node = orders[:, stage]
            lows, highs = self._windows.of(node, ceilings_s, len(order), is_last=stage == len(order) - 1)
            low, high = int(lows[0, ends[-1]]), int(highs[0, ends[-1]])
            before = tables[stage - 1][0, low:high] - batch.layer_ends_s[order[stage], low:high]
            ends.append(low + first_smallest(before))
        return Placement(order, tuple(reversed(ends)))

    def _tables(self, orders: Indices, ceilings_s: Array) -> list[Array]:
        """By stage: [order, end] seconds of the trip up to the end of that stage, which ends before layer `end`."""
        num_stages = orders.shape[1]
        batch = self._problem.costs(num_stages)
        arrival = numpy.full((len(orders), self._problem.num_layers + 1), numpy.inf)
        arrival[:, 0] = batch.out_s[orders[:, 0]]
        tables: list[Array] = []
        for stage in range(num_stages):
            nodes, is_last = orders[:, stage], stage == num_stages - 1
            if stage:
                arrival = tables[-1] + batch.hop_s[orders[:, stage - 1], nodes][:, None]
            lows, highs = self._windows.of(nodes, ceilings_s, num_stages, is_first=stage == 0, is_last=is_last)
            seconds = stage_ends_s(arrival, batch.layer_ends_s[nodes], lows, highs) + batch.step_s[nodes][:, None]
            tables.append(seconds + is_last * (batch.head_s + batch.back_s)[nodes][:, None])
        return tables


def stage_ends_s(arrival: Array, sums_s: Array, lows: Indices, highs: Indices) -> Array:
    """[row, end] seconds until a stage is done that ends before layer `end`; layers [0, s) are done at arrival[s]."""
    seconds: Array = sums_s + window_min(arrival - sums_s, lows, highs)
    return seconds
