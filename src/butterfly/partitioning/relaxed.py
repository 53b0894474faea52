"""What no placement can beat: the planner's problem without the one thing that makes it hard, the way.

Nodes and layer counts are chosen exactly, but each node is reached over its own cheapest link, whether or not these
links make a way. Where nodes stand in groups with slow links between them, every group but the first also pays for
being entered from outside.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy

from butterfly.partitioning.bounds import shortest_alone
from butterfly.partitioning.cuts import window_min
from butterfly.partitioning.levels import Trip
from butterfly.partitioning.objective import Array
from butterfly.partitioning.problem import Problem
from butterfly.partitioning.subsets import Indices
from butterfly.partitioning.uniform import layers_in_time

FAR = 2.0  # links this much slower than the next faster ones separate groups


class RelaxedTrips:
    """Answers with lengths that no trip falls below: see `levels`."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        by_size = numpy.cumsum(numpy.sort(problem.layer_bytes))
        room = problem.capacity - problem.stage_bytes
        self._in_memory = numpy.where(room < 0, 0, numpy.searchsorted(by_size, room, side="right"))
        self._latest: tuple[tuple[int, float], Array] | None = None

    def shortest(self, num_stages: int, ceiling_s: float) -> Trip | None:
        """A trip no longer than any through so many stages with no stage and no link slower than the ceiling."""
        problem, batch = self._problem, self._problem.costs(num_stages)
        if num_stages == 1:
            return shortest_alone(problem, ceiling_s)
        most = problem.max_stages if problem.objective == "latency" else num_stages
        if self._latest is None or self._latest[0] != (most, ceiling_s):
            self._latest = (most, ceiling_s), self._chosen_s(most, ceiling_s)
        chosen_s = float(self._latest[1][num_stages])
        if chosen_s == float("inf"):
            return None
        ends_s = float((batch.out_s - self._reached_s(num_stages, ceiling_s)).min())
        ends_s += float((batch.head_s + batch.back_s).min())
        stages_s = batch.step_s + batch.head_s + batch.layer_ends_s[:, -1]
        highest_s = max(float(stages_s.max()), float(batch.occupied_s.max()))  # a higher ceiling allows nothing more
        return Trip(max(0.0, chosen_s + ends_s), min(ceiling_s, highest_s))

    def _reached_s(self, num_stages: int, ceiling_s: float) -> Array:
        """[node]: the cheapest hop to it; one that the ceiling forbids where there is no other."""
        batch = self._problem.costs(num_stages)
        allowed_s = numpy.where(batch.occupied_s <= ceiling_s, batch.hop_s, numpy.inf).min(axis=0)
        reached_s: Array = numpy.where(numpy.isinf(allowed_s), batch.hop_s.min(axis=0), allowed_s)
        return reached_s

    def _chosen_s(self, most: int, ceiling_s: float) -> Array:
        """[number of stages]: the least that so many nodes take that hold all layers and are reached; infinite: none.

        A layer takes its node's time for the quickest layer, and beside that what it takes more than that everywhere.
        """
        problem, batch = self._problem, self._problem.costs(most)
        layer_s, reached_s = batch.layer_s.min(axis=1), self._reached_s(most, ceiling_s)
        entry_s = self._entry_s(most, reached_s)
        in_time = layers_in_time(ceiling_s - batch.step_s, layer_s, problem.num_layers)
        room = numpy.minimum(self._in_memory, in_time)
        seconds = numpy.full((most + 1, problem.num_layers + 1), numpy.inf)  # [stages, layers]
        seconds[0, 0] = 0.0
        for group in self._groups:
            inside = numpy.full_like(seconds, numpy.inf)  # with a node of this group
            for node in group.tolist():
                more = self._with(numpy.minimum(inside, seconds + entry_s), node, int(room[node]), float(layer_s[node]))
                more += batch.step_s[node] + reached_s[node]
                if node in problem.pins:
                    inside, seconds = more, numpy.full_like(seconds, numpy.inf)
                else:
                    inside = numpy.minimum(inside, more)
            seconds = numpy.minimum(seconds, inside)
        beyond_s = float((batch.layer_s - layer_s[:, None]).min(axis=0).sum())
        chosen_s: Array = seconds[:, -1] + beyond_s - entry_s
        return chosen_s

    def _with(self, seconds: Array, node: int, room: int, layer_s: float) -> Array:
        """[stages, layers]: with one more stage, on this node, that has from one layer up to its room."""
        least, layers = 1, numpy.arange(seconds.shape[1])
        if node in self._problem.pins:
            start, end = self._problem.pins[node]
            least, room = end - start, min(room, end - start)
        more = numpy.full_like(seconds, numpy.inf)
        if room >= least:
            held_s = layer_s * layers
            lows, highs = numpy.maximum(layers - room, 0)[None], (layers + 1 - least)[None]
            more[1:] = window_min(seconds[:-1] - held_s, lows, highs) + held_s
        return more

    def _entry_s(self, num_stages: int, reached_s: Array) -> float:
        """What it takes at least to come to another group, beyond the cheapest hop to the node that is come to."""
        hop_s, entries = self._problem.costs(num_stages).hop_s, []
        for group in self._groups:
            from_outside_s = numpy.delete(hop_s[:, group], group, axis=0).min(axis=0, initial=numpy.inf)
            entries.append(float((from_outside_s - reached_s[group]).min()))
        return max(0.0, min(entries)) if len(entries) > 1 else 0.0

    @cached_property
    def _groups(self) -> list[Indices]:
        """The nodes, parted where the links between them get slower by the largest factor, if that is large."""
        hop_s = self._problem.costs(self._problem.max_stages).hop_s
        near_s = numpy.minimum(hop_s, hop_s.T)
        label = numpy.arange(len(near_s))
        joints: list[tuple[float, int, int]] = []  # the shortest links that join all nodes, in order
        for a, b in zip(*numpy.unravel_index(near_s.argsort(axis=None, kind="stable"), near_s.shape), strict=True):
            if label[a] != label[b]:
                joints.append((float(near_s[a, b]), int(a), int(b)))
                label[label == label[b]] = label[a]
        return _parted(len(near_s), joints)


def _parted(num_nodes: int, joints: list[tuple[float, int, int]]) -> list[Indices]:
    """The groups that the joints make up to the largest step in their seconds."""
    factors = [after[0] / max(before[0], 1e-12) for before, after in pairwise(joints)]
    largest = max(factors, default=0.0)
    kept = joints[: factors.index(largest) + 1] if largest >= FAR else joints
    label = numpy.arange(num_nodes)
    for _, a, b in kept:
        label[label == label[b]] = label[a]
    return [numpy.flatnonzero(label == value) for value in numpy.unique(label)]
