"""All ways to part a few nodes and the streams into pipelines, with a proof of the best.

A table over (nodes used, number of pipelines, streams) of sums of what single pipelines give says the best partition.
It begins with bounds instead of speeds. Pipelines of the best partition are then planned and the table is made anew,
until one with planned pipelines only is the best: everything else was worse even by its bound.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy
from numpy.lib.stride_tricks import sliding_window_view

from butterfly.partitioning.fleets import BETTER, FleetRules, FoundFleet
from butterfly.partitioning.pipeline_speeds import Pipeline, PipelineSpeeds

MAX_NODES = 8
MAX_TABLE_WORK = 4e7  # additions of the first table
MAX_WORK = 6e8  # additions of all tables; then what is left of the gap is reported
MAX_SOLVED = 400  # pipelines that are planned; then the same

_NONE = float("-inf")


class _Chosen(NamedTuple):
    tokens_per_s: float
    used: int  # nodes, a bit each
    num_pipelines: int


def table_work(rules: FleetRules) -> float:
    """Additions of one table."""
    return 3.0 ** len(rules.useful) / 2 * rules.most_pipelines * (rules.num_streams + 1) ** 2


def best_partition(speeds: PipelineSpeeds, rules: FleetRules) -> FoundFleet | None:
    """The fleet that gives most; None when none fits. It is proven when its bound is what it gives."""
    table = _Table(speeds, rules)
    best: FoundFleet | None = None
    last = speeds.num_solved + MAX_SOLVED
    while True:
        chosen = table.choose()
        if chosen is None:
            return best
        bound = chosen.tokens_per_s
        if best is not None and bound <= best.tokens_per_s * (1 + BETTER):
            return best._replace(bound_tokens_per_s=best.tokens_per_s)
        pipelines = table.pipelines(chosen)
        if speeds.num_solved >= last or table.work > MAX_WORK:
            return best._replace(bound_tokens_per_s=bound) if best is not None else None
        for pipeline in pipelines:
            table.solve(pipeline)
        given = [speeds.solved(pipeline) for pipeline in pipelines]
        if all(given) and (best is None or sum(given) > best.tokens_per_s):
            best = FoundFleet(pipelines, sum(given), bound)


class _Table:
    """The best sums, of speeds where pipelines were planned and of bounds where they were not."""

    def __init__(self, speeds: PipelineSpeeds, rules: FleetRules) -> None:
        self._speeds, self._rules = speeds, rules
        self._nodes_of = [
            tuple(node for i, node in enumerate(rules.useful) if used >> i & 1)
            for used in range(1 << len(rules.useful))
        ]
        self._allowed = [used for used, nodes in enumerate(self._nodes_of) if nodes and rules.allows(nodes)]
        streams = rules.num_streams
        self._single = numpy.full((len(self._nodes_of), streams + 1), _NONE)  # [nodes used, streams] tokens per second
        self._same: dict[Pipeline, list[tuple[int, int]]] = {}  # by form: places in `_single`
        for used in range(1, len(self._nodes_of)):
            for num_streams in range(1, streams + 1):
                pipeline = Pipeline(self._nodes_of[used], num_streams)
                self._single[used, num_streams] = self._speeds.at_most(pipeline) or _NONE
                self._same.setdefault(self._speeds.form(pipeline), []).append((used, num_streams))
        # [nodes used, pipelines, streams], behind as many places which say that less than no stream is impossible
        self._padded = numpy.full((len(self._nodes_of), rules.most_pipelines + 1, 2 * streams + 1), _NONE)
        self._sums = self._padded[:, :, streams:]
        self._sums[0, 0, 0] = 0.0
        # [nodes used, pipelines, streams, untaken]: sums of what is left when so many of all streams are not taken
        self._left = sliding_window_view(self._padded, streams + 1, axis=2)
        self._changed = set(range(1, len(self._nodes_of)))  # groups
        self.work = 0.0  # additions

    def solve(self, pipeline: Pipeline) -> None:
        """Put what it really gives in the place of its bound."""
        given = self._speeds.solved(pipeline) or _NONE
        for place in self._same[self._speeds.form(pipeline)]:
            if self._single[place] != given:
                self._single[place] = given
                self._changed.add(place[0])

    def choose(self) -> _Chosen | None:
        """The best sum; of equal ones that with the fewest pipelines. None: nothing fits."""
        self._add_up()
        best: _Chosen | None = None
        for num_pipelines in range(1, self._rules.most_pipelines + 1):
            for used in self._allowed:
                given = float(self._sums[used, num_pipelines, self._rules.num_streams])
                if given > (best.tokens_per_s * (1 + BETTER) if best is not None else _NONE):
                    best = _Chosen(given, used, num_pipelines)
        return best

    def pipelines(self, chosen: _Chosen) -> tuple[Pipeline, ...]:
        """Those that add up to this sum."""
        _, used, count = chosen
        streams, found = self._rules.num_streams, []
        while count:
            group, taken = self._last(used, count, streams)
            found.append(Pipeline(self._nodes_of[group], taken))
            used, count, streams = used ^ group, count - 1, streams - taken
        return tuple(found)

    def _add_up(self) -> None:
        """Anew where a group of the used nodes has changed."""
        possible = self._single.max(axis=1) > _NONE
        untaken = self._single[:, ::-1]
        for used in range(1, len(self._nodes_of)):
            if not any(used & group == group for group in self._changed):
                continue
            best = self._sums[used, 1:]
            best.fill(_NONE)
            for group in _groups(used):
                if possible[group]:
                    with_group = self._left[used ^ group, :-1] + untaken[group]
                    numpy.maximum(best, with_group.max(axis=2), out=best)
                    self.work += with_group.size
        self._changed.clear()

    def _last(self, used: int, count: int, streams: int) -> tuple[int, int]:
        """The pipeline with the lowest of these nodes in their best sum: its nodes and its streams."""
        for group in _groups(used):
            sums = self._left[used ^ group, count - 1, streams] + self._single[group, ::-1]
            untaken = numpy.flatnonzero(sums == self._sums[used, count, streams])
            if len(untaken):
                return group, self._rules.num_streams - int(untaken[0])
        raise AssertionError("a sum of a table is made of its entries")


def _groups(used: int) -> list[int]:
    """All sets of these nodes that have the lowest of them."""
    lowest = used & -used
    rest = part = used ^ lowest
    found = []
    while True:
        found.append(part | lowest)
        if not part:
            return found
        part = (part - 1) & rest
