"""Orders that differ from one by a single change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from butterfly.partitioning.problem import Problem
from butterfly.partitioning.subsets import Indices

REACH = 12  # stages that a change of order spans at most


def neighbours(problem: Problem, order: tuple[int, ...]) -> Iterator[Indices]:
    """Groups [order, stage] of one length each: a node less, one more, and one for another or another order."""
    nodes, num_stages = numpy.array(order, dtype=numpy.intp), len(order)
    others = numpy.array([node for node in range(problem.num_nodes) if node not in order], dtype=numpy.intp)
    if num_stages > problem.min_stages:
        yield from _allowed(problem, nodes[_without_one(num_stages)])
    groups = []
    if len(others):
        replaced = numpy.tile(nodes, (num_stages, len(others), 1))
        replaced[numpy.arange(num_stages), :, numpy.arange(num_stages)] = others
        groups.append(replaced.reshape(-1, num_stages))
    if num_stages > 1:
        groups.append(nodes[_reordered(num_stages)])
    if groups:
        yield from _allowed(problem, numpy.concatenate(groups))
    if len(others) and num_stages < problem.max_stages:
        more = [numpy.insert(nodes, place, 0) for place in range(num_stages + 1)]
        added = numpy.tile(numpy.array(more)[:, None], (1, len(others), 1))
        places = numpy.arange(num_stages + 1)
        added[places, :, places] = others
        yield from _allowed(problem, added.reshape(-1, num_stages + 1))


def _without_one(num_stages: int) -> Indices:
    return numpy.array([[i for i in range(num_stages) if i != left_out] for left_out in range(num_stages)])


def _reordered(num_stages: int) -> Indices:
    """Two stages exchanged, one moved elsewhere, a run of them turned round; each once."""
    found: dict[tuple[int, ...], None] = {}
    plain = list(range(num_stages))
    for low in range(num_stages):
        for high in range(low + 1, min(num_stages, low + REACH + 1)):
            before, run, after = plain[:low], plain[low : high + 1], plain[high + 1 :]
            for changed in ([run[-1], *run[1:-1], run[0]], [*run[1:], run[0]], [run[-1], *run[:-1]], run[::-1]):
                found[(*before, *changed, *after)] = None
    return numpy.array(list(found), dtype=numpy.intp)


def _allowed(problem: Problem, orders: Indices) -> Iterator[Indices]:
    """Those with all pinned nodes in the order of their layers."""
    if problem.pins and orders.size:
        by_layers = sorted(problem.pins, key=lambda node: problem.pins[node])
        has_all = numpy.all([(orders == node).any(axis=1) for node in by_layers], axis=0)
        places = numpy.array([(orders == node).argmax(axis=1) for node in by_layers])
        orders = orders[has_all & (numpy.diff(places, axis=0) > 0).all(axis=0)]
    if orders.size:
        yield orders
