"""Exact, for layers that are all alike: only their numbers matter, and those do not depend on the nodes' order.

For each subset of nodes, its first and its last one: one layer each, and the others to the fastest node up to its
capacity, then to the next fastest. Beside that the cheapest way from the first node through all to the last.
"""

from __future__ import annotations

from itertools import product

import numpy
import numpy.typing as npt

from butterfly.partitioning.levels import Trip
from butterfly.partitioning.objective import Array
from butterfly.partitioning.problem import Placement, Problem
from butterfly.partitioning.subsets import Indices, Subsets, Ways, num_memberships

Counts = npt.NDArray[numpy.int64]

MAX_WORK = 12e6  # about what 13 nodes need


def work(problem: Problem) -> float:
    """Additions of one search for ways; infinite where layers or pins forbid this solver."""
    if not problem.is_uniform or problem.pins:
        return float("inf")
    return problem.num_nodes**2 * num_memberships(problem.num_nodes, problem.max_stages)


def layers_in_memory(problem: Problem, *, is_first: bool = False, is_last: bool = False) -> Counts:
    """[node]: how many average layers fit, at most all; negative where not even what comes with none does."""
    room = problem.capacity - problem.stage_bytes - is_first * problem.first_bytes - is_last * problem.last_bytes
    layer_bytes = int(problem.layer_ends_bytes[-1]) / problem.num_layers
    fit = room // layer_bytes if layer_bytes else numpy.where(room < 0, -1, problem.num_layers)
    return numpy.minimum(fit, problem.num_layers).astype(numpy.int64)


def layers_in_time(room_s: Array, layer_s: Array, num_layers: int) -> Counts:
    """How many layers of so many seconds there is time for, at most all; -1 where there is less than no time."""
    is_timed = layer_s > 0
    fit = numpy.where(is_timed, room_s / numpy.where(is_timed, layer_s, 1.0), num_layers)
    return numpy.where(room_s < 0, -1, numpy.minimum(fit, num_layers)).astype(numpy.int64)


class UniformTrips:
    """Answers with shortest trips: see `levels`."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._subsets = Subsets(problem.num_nodes, problem.max_stages)
        self._ways: dict[tuple[int, float], Ways] = {}

    def shortest(self, num_stages: int, ceiling_s: float) -> Trip | None:
        """The shortest trip through so many stages with no stage and no link slower than the ceiling."""
        problem, batch = self._problem, self._problem.costs(num_stages)
        members = self._fastest_first(num_stages)
        firsts, lasts = _ends(num_stages)
        counts, seconds = self._fill(members, ceiling_s)
        ways = self._ways_under(num_stages, ceiling_s)
        first, last, rows = members[:, firsts], members[:, lasts], numpy.arange(len(members))[:, None]
        seconds = seconds + ways.seconds[num_stages][first, last, rows] + batch.out_s[first] + batch.back_s[last]
        row, pair = (int(index) for index in numpy.unravel_index(seconds.argmin(), seconds.shape))
        if numpy.isinf(seconds[row, pair]):
            return None
        nodes = ways.order(row, num_stages, int(first[row, pair]), int(last[row, pair]))
        count_of = dict(zip(members[row].tolist(), counts[row, pair].tolist(), strict=True))
        ends = numpy.cumsum([count_of[node] for node in nodes])
        placement = Placement(nodes, tuple(ends.tolist()))
        score = problem.evaluate(placement)
        return Trip(score.trip_s, score.slowest_s, placement)

    def _fastest_first(self, num_stages: int) -> Indices:
        """[subset, its nodes]: of equally fast ones the smaller number first."""
        members = self._subsets.members[num_stages]
        layer_s = self._problem.costs(num_stages).layer_s[:, 0]
        by_speed = numpy.argsort(layer_s[members], axis=1, kind="stable")
        return numpy.take_along_axis(members, by_speed, axis=1)

    def _fill(self, members: Indices, ceiling_s: float) -> tuple[Counts, Array]:
        """[subset, pair of ends, node] layers, and [subset, pair of ends] seconds of compute; infinite: no room."""
        num_stages = members.shape[1]
        batch = self._problem.costs(num_stages)
        layer_s, spare = batch.layer_s[:, 0][members], self._problem.num_layers - num_stages
        more = self._room(members, ceiling_s) - 1  # beside the one that each has
        filled = numpy.minimum(numpy.cumsum(more, axis=2), spare)
        counts = 1 + numpy.diff(filled, axis=2, prepend=0)
        seconds = (counts * layer_s[:, None, :]).sum(axis=2) + batch.step_s[members].sum(axis=1)[:, None]
        seconds += batch.head_s[members[:, _ends(num_stages)[1]]]
        has_room = (more.min(axis=2) >= 0) & (filled[:, :, -1] == spare)
        return counts, numpy.where(has_room, seconds, numpy.inf)

    def _room(self, members: Indices, ceiling_s: float) -> Counts:
        """[subset, pair of ends, node]: how many layers its memory and the ceiling allow."""
        problem, num_stages = self._problem, members.shape[1]
        batch = problem.costs(num_stages)
        layer_s, room_s = batch.layer_s[:, 0], ceiling_s - batch.step_s
        in_time = {
            False: layers_in_time(room_s, layer_s, problem.num_layers),
            True: layers_in_time(room_s - batch.head_s, layer_s, problem.num_layers),
        }
        by_role = [
            numpy.minimum(layers_in_memory(problem, is_first=is_first, is_last=is_last), in_time[is_last])
            for is_first, is_last in product((False, True), repeat=2)
        ]
        firsts, lasts = _ends(num_stages)
        position = numpy.arange(num_stages)
        role = 2 * (firsts[:, None] == position) + (lasts[:, None] == position)  # [pair of ends, node]
        room: Counts = numpy.stack(by_role)[role[None], members[:, None, :]]
        return room

    def _ways_under(self, num_stages: int, ceiling_s: float) -> Ways:
        """Ways over links that are not busy for longer than the ceiling, for all numbers of stages with these costs."""
        problem, batch = self._problem, self._problem.costs(num_stages)
        allowed = batch.occupied_s <= ceiling_s
        key = problem.num_tokens(num_stages), float(batch.occupied_s[allowed].max(initial=0.0))
        if key not in self._ways:
            counts = range(num_stages, problem.max_stages + 1)
            most = max(count for count in counts if problem.num_tokens(count) == key[0])
            self._ways[key] = Ways(self._subsets, numpy.where(allowed, batch.hop_s, numpy.inf), most)
        return self._ways[key]


def _ends(num_stages: int) -> tuple[Indices, Indices]:
    """Positions of the first and the last node in a subset, for each pair of two different ones."""
    if num_stages == 1:
        return numpy.zeros(1, dtype=numpy.intp), numpy.zeros(1, dtype=numpy.intp)
    first, last = numpy.nonzero(~numpy.eye(num_stages, dtype=bool))
    return first, last
