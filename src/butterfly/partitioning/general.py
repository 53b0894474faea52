"""Exact, for layers that differ and for pins: which node has which layers depends on the order now.

A dynamic programme over (subset of the nodes, last of them, layers done), after Held and Karp.
"""

from __future__ import annotations

import numpy
import numpy.typing as npt

from butterfly.partitioning.cuts import Windows, stage_ends_s
from butterfly.partitioning.levels import Trip
from butterfly.partitioning.objective import Array
from butterfly.partitioning.problem import Placement, Problem
from butterfly.partitioning.subsets import Indices, Subsets, first_smallest, num_memberships

WINDOW_WORK = 60  # what a minimum over a window costs, in additions


def work(problem: Problem) -> float:
    """Additions of one pass over all states."""
    states = num_memberships(problem.num_nodes, problem.max_stages) * (problem.num_layers + 1)
    return states * (problem.num_nodes + WINDOW_WORK)


class GeneralTrips:
    """Answers with shortest trips: see `levels`."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._subsets = Subsets(problem.num_nodes, problem.max_stages)
        self._windows = Windows(problem)
        self._passes: dict[tuple[int, float], _Pass] = {}  # the latest one; at latency it serves all numbers of stages

    def shortest(self, num_stages: int, ceiling_s: float) -> Trip | None:
        """The shortest trip through so many stages with no stage and no link slower than the ceiling."""
        problem = self._problem
        most = problem.max_stages if problem.objective == "latency" else num_stages
        key = most, ceiling_s
        if key not in self._passes:
            self._passes = {key: _Pass(problem, self._subsets, self._windows, most, ceiling_s)}
        placement = self._passes[key].placement(num_stages)
        if placement is None:
            return None
        score = problem.evaluate(placement)
        return Trip(score.trip_s, score.slowest_s, placement)


class _Pass:
    """All shortest trips through up to `most` stages under one ceiling, with the costs of a batch for `most`."""

    def __init__(self, problem: Problem, subsets: Subsets, windows: Windows, most: int, ceiling_s: float) -> None:
        self._problem, self._subsets, self._windows = problem, subsets, windows
        self._most, self._batch = most, problem.costs(most)
        self._ceiling_s = numpy.array([ceiling_s])
        self._hop_s = numpy.where(self._batch.occupied_s <= ceiling_s, self._batch.hop_s, numpy.inf)
        self._unfinished: list[Array] = [numpy.empty(0)]  # by stages: [last node, subset, end] seconds
        self._finished: list[Array] = [numpy.empty(0)]  # by stages: [last node, subset] seconds, all done and back
        for size in range(1, most + 1):
            self._add(size)

    def placement(self, num_stages: int) -> Placement | None:
        """The shortest trip's; None where there is none."""
        seconds = self._finished[num_stages]
        last, row = (int(index) for index in numpy.unravel_index(seconds.argmin(), seconds.shape))
        if numpy.isinf(seconds[last, row]):
            return None
        nodes, ends = [last], [self._problem.num_layers]
        for size in range(num_stages, 1, -1):
            lows, highs = self._window(nodes[-1], is_last=size == num_stages)
            layers = slice(int(lows[0, ends[-1]]), int(highs[0, ends[-1]]))
            row = self._subsets.without(size, row, nodes[-1])
            seconds = self._unfinished[size - 1][:, row, layers] + self._hop_s[:, nodes[-1], None]
            before = first_smallest((seconds - self._batch.layer_ends_s[nodes[-1], layers]).ravel())
            nodes.append(before // seconds.shape[1])
            ends.append(layers.start + before % seconds.shape[1])
        return Placement(tuple(reversed(nodes)), tuple(reversed(ends)))

    def _add(self, size: int) -> None:
        batch, num_subsets = self._batch, len(self._subsets.members[size])
        unfinished = numpy.full((len(batch.step_s), num_subsets, self._problem.num_layers + 1), numpy.inf)
        finished = numpy.full((len(batch.step_s), num_subsets), numpy.inf)
        for node, (rows, before) in enumerate(self._subsets.steps[size]):
            arrival, sums_s = self._arrival(size, node, before), batch.layer_ends_s[node][None]
            if size < self._most:
                window = self._window(node, is_first=size == 1)
                unfinished[node, rows] = stage_ends_s(arrival, sums_s, *window) + batch.step_s[node]
            window = self._window(node, is_first=size == 1, is_last=True)
            ended = stage_ends_s(arrival, sums_s, window[0][:, -1:], window[1][:, -1:])[:, -1]
            finished[node, rows] = ended + batch.step_s[node] + batch.head_s[node] + batch.back_s[node]
        finished[:, ~self._has_pinned(size)] = numpy.inf
        self._unfinished.append(unfinished)
        self._finished.append(finished)

    def _arrival(self, size: int, node: int, before: Indices) -> Array:
        """[subset, layers done] seconds until a trip through the smaller subset comes to this node."""
        if size > 1:
            trips: Array = (self._unfinished[size - 1][:, before] + self._hop_s[:, node, None, None]).min(axis=0)
            return trips
        arrival = numpy.full((len(before), self._problem.num_layers + 1), numpy.inf)
        arrival[:, 0] = self._batch.out_s[node]
        return arrival

    def _window(self, node: int, *, is_first: bool = False, is_last: bool = False) -> tuple[Indices, Indices]:
        nodes = numpy.array([node], dtype=numpy.intp)
        return self._windows.of(nodes, self._ceiling_s, self._most, is_first=is_first, is_last=is_last)

    def _has_pinned(self, size: int) -> npt.NDArray[numpy.bool_]:
        """[subset]: whether all pinned nodes are in it."""
        members = self._subsets.members[size]
        found = numpy.ones(len(members), dtype=bool)
        for node in self._problem.pins:
            found &= (members == node).any(axis=1)
        return found
