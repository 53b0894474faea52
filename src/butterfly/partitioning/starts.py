"""Orders to begin a search with: ways from each node to the next best one, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy

from butterfly.partitioning.objective import Array
from butterfly.partitioning.problem import Problem
from butterfly.partitioning.subsets import Indices

MANY_STAGES = 16  # beyond so many only every fourth number of stages is tried
EVERY = 4
SHARES = (1.0, 0.7, 0.5, 0.3)  # of each node's room, between pinned nodes


def starts(problem: Problem, room: Indices) -> Iterator[Indices]:
    """Groups of orders [order, stage] of one length each. `room` [2 * is last + is first, node] has layers."""
    usable = numpy.flatnonzero(room[0] >= 1)
    if not len(usable):
        return
    tours = _tours(problem, room[0], usable)
    if problem.pins:
        yield from _around_pins(problem, room[0], tours)
        return
    for num_stages in range(problem.min_stages, min(problem.max_stages, len(usable)) + 1):
        if num_stages == problem.max_stages or num_stages <= MANY_STAGES or num_stages % EVERY == 0:
            yield numpy.unique(tours[:, :num_stages], axis=0)
        roomy = _roomiest(problem, room, num_stages, tours)
        if roomy is not None:
            yield roomy


def _tours(problem: Problem, room: Indices, usable: Indices) -> Indices:
    """[tour, place]: from each usable node, by several opinions of which is next best, and by room alone."""
    batch = problem.costs(min(8, problem.max_stages))
    layer_s, per_layer_s = batch.layer_s.mean(axis=1), 1 / numpy.maximum(room, 1)
    opinions = [batch.hop_s + layer_s * layers for layers in (0, 1, 4, problem.num_layers / 4)]
    opinions.append((batch.hop_s + batch.step_s) * per_layer_s + layer_s)
    tours = [_nearest_first(opinion, usable) for opinion in opinions]
    by_room = usable[numpy.argsort(-room[usable], kind="stable")]
    return numpy.concatenate([*tours, by_room[None], usable[numpy.argsort(layer_s[usable], kind="stable")][None]])


def _nearest_first(next_s: Array, usable: Indices) -> Indices:
    """[first node, place]: the tours that always go to the unvisited node that `next_s` [from, to] has least for."""
    count = len(usable)
    visited = numpy.eye(count, dtype=bool)
    tour = [numpy.arange(count)]
    distances = next_s[numpy.ix_(usable, usable)]
    for _ in range(count - 1):
        tour.append(numpy.where(visited, numpy.inf, distances[tour[-1]]).argmin(axis=1))
        visited[numpy.arange(count), tour[-1]] = True
    tours: Indices = usable[numpy.stack(tour, axis=1)]
    return tours


def _roomiest(problem: Problem, room: Indices, num_stages: int, tours: Indices) -> Indices | None:
    """An order of so many nodes that has room for all layers, if any has: the best ends, and the largest others."""
    if num_stages == 1:
        alone = numpy.flatnonzero(room[3] >= problem.num_layers)
        return alone[:, None] if len(alone) else None
    nodes = numpy.flatnonzero(room[0] >= 1)
    nodes = nodes[numpy.argsort(-room[0][nodes], kind="stable")]
    most, between = room[0][nodes], num_stages - 2
    sums = numpy.concatenate([[0], numpy.cumsum(most)])
    low, high = numpy.minimum(*numpy.indices((len(nodes),) * 2)), numpy.maximum(*numpy.indices((len(nodes),) * 2))
    both = sums[between + 2] - most[low] - most[high]  # of the largest others, when both ends are among the largest
    one = sums[between + 1] - most[low]
    others = numpy.where(low >= between, sums[between], numpy.where(high > between, one, both))
    as_first, as_last = room[1][nodes], room[2][nodes]
    total = numpy.where((as_first >= 1)[:, None] & (as_last >= 1), as_first[:, None] + as_last + others, -1)
    numpy.fill_diagonal(total, -1)
    first, last = (int(end) for end in numpy.unravel_index(total.argmax(), total.shape))
    if total[first, last] < problem.num_layers:
        return None
    inner = set(numpy.delete(nodes, [first, last])[:between].tolist())
    way = next(tour for tour in tours.tolist() if tour[0] == nodes[first])
    return numpy.array([[nodes[first], *(node for node in way if node in inner), nodes[last]]], dtype=numpy.intp)


def _around_pins(problem: Problem, room: Indices, tours: Indices) -> Iterator[Indices]:
    """The pinned nodes in order, and between them the next nodes of each tour until they have room, or more."""
    pinned = sorted(problem.pins.items(), key=lambda pin: pin[1])
    found: dict[tuple[int, ...], None] = {}
    for tour, share in product(tours.tolist(), SHARES):
        free = [node for node in tour if node not in problem.pins]
        order: list[int] = []
        done = 0
        for node, (start, end) in [*pinned, (-1, (problem.num_layers, problem.num_layers))]:
            while done < start and free:
                order.append(free.pop(0))
                done += max(1, int(room[order[-1]] * share))
            order.extend([node] if node >= 0 else [])
            done = end
        spread = _with_all(order, free, problem) if problem.min_stages > 1 else order
        if problem.min_stages <= len(spread) <= problem.max_stages:
            found[tuple(spread)] = None
    for num_stages in sorted({len(order) for order in found}):
        yield numpy.array([order for order in found if len(order) == num_stages], dtype=numpy.intp)


def _with_all(order: list[int], free: list[int], problem: Problem) -> list[int]:
    """The order with the nodes that are left beside the last node that is not pinned."""
    places = [place for place, node in enumerate(order) if node not in problem.pins]
    place = places[-1] + 1 if places else len(order)
    return [*order[:place], *free, *order[place:]]
