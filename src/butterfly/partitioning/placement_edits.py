"""Placements beside a given one: a boundary moved, a node taken in. For explanations, not for search."""

from __future__ import annotations

from collections.abc import Iterator

from butterfly.partitioning.problem import Placement, Problem


def moved(placement: Placement, boundary: int, num_layers: int) -> Placement:
    """The boundary after stage `boundary` so many layers further back or (negative) ahead; an empty stage is gone."""
    ends = list(placement.ends)
    ends[boundary] += num_layers
    starts = [0, *ends[:-1]]
    kept = [i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if start < end]
    return Placement(tuple(placement.nodes[i] for i in kept), tuple(ends[i] for i in kept))


def with_node(placement: Placement, node: int) -> Iterator[Placement]:
    """A stage on `node` before, between or after the others, with some of the layers of one neighbour."""
    ranges = placement.ranges()
    for i, (_, start, end) in enumerate(ranges):
        before, after = ranges[:i], ranges[i + 1 :]
        for cut in range(start + 1, end):
            halves = ((ranges[i][0], start, cut), (node, cut, end)), ((node, start, cut), (ranges[i][0], cut, end))
            for first, second in halves:
                stages = [*before, first, second, *after]
                yield Placement(tuple(stage[0] for stage in stages), tuple(stage[2] for stage in stages))


def with_node_instead(placement: Placement, node: int) -> Iterator[Placement]:
    """`node` in the place of each of the others."""
    for i in range(len(placement.nodes)):
        yield Placement((*placement.nodes[:i], node, *placement.nodes[i + 1 :]), placement.ends)


def is_within_memory(problem: Problem, placement: Placement) -> bool:
    """Whether it fits, however many nodes and whichever layers were asked for."""
    last = len(placement.nodes) - 1
    return all(
        problem.needed_bytes(start, end, is_first=i == 0, is_last=i == last) <= problem.capacity[node]
        for i, (node, start, end) in enumerate(placement.ranges())
    )
