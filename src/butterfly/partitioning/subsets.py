"""Subsets of the nodes, and the cheapest way through each of them (Held and Karp, 1962)."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy
import numpy.typing as npt

from butterfly.partitioning.levels import TIE
from butterfly.partitioning.objective import Array

Indices = npt.NDArray[numpy.intp]


class Step(NamedTuple):
    """The subsets of one size that have a certain node, and where they are found without it among the smaller ones."""

    rows: Indices
    before: Indices


class Subsets:
    """All subsets of up to `most` nodes, numbered in lexical order within their size."""

    def __init__(self, num_nodes: int, most: int) -> None:
        self.num_nodes = num_nodes
        self.members: list[Indices] = [numpy.zeros((1, 0), dtype=numpy.intp)]  # by size: [subset, its nodes]
        self.steps: list[list[Step]] = [[]]  # by size and node
        row_of: dict[tuple[int, ...], int] = {(): 0}
        for size in range(1, most + 1):
            subsets = list(combinations(range(num_nodes), size))
            self.members.append(numpy.array(subsets, dtype=numpy.intp).reshape(-1, size))
            self.steps.append([_step(subsets, row_of, node) for node in range(num_nodes)])
            row_of = {subset: row for row, subset in enumerate(subsets)}

    def without(self, size: int, row: int, node: int) -> int:
        """The number of this subset without that node of it."""
        step = self.steps[size][node]
        return int(step.before[numpy.searchsorted(step.rows, row)])


def num_memberships(num_nodes: int, most: int) -> int:
    """How many nodes all subsets of up to `most` nodes have together: what a step over all of them is worth."""
    return sum(size * comb(num_nodes, size) for size in range(1, most + 1))


class Ways:
    """The cheapest order of each subset between each first and last node of it, over hops of these costs."""

    def __init__(self, subsets: Subsets, hop_s: Array, most: int) -> None:
        self._subsets, self._hop_s = subsets, hop_s
        count = subsets.num_nodes
        ones = numpy.full((count, count, count), numpy.inf)
        ones[range(count), range(count), range(count)] = 0.0
        self.seconds: list[Array] = [numpy.empty(0), ones]  # by size: [first, last, subset]; infinite: none
        for size in range(2, most + 1):
            self.seconds.append(self._larger(size))

    def order(self, row: int, size: int, first: int, last: int) -> tuple[int, ...]:
        """The nodes of the cheapest way, which must exist; of equally cheap ones that which ends with small numbers."""
        nodes = [last]
        while size > 1:
            row = self._subsets.without(size, row, nodes[-1])
            size -= 1
            seconds = self.seconds[size][first, :, row] + self._hop_s[:, nodes[-1]]
            nodes.append(first_smallest(seconds))
        return tuple(reversed(nodes))

    def _larger(self, size: int) -> Array:
        count, smaller = self._subsets.num_nodes, self.seconds[size - 1]
        seconds = numpy.full((count, count, len(self._subsets.members[size])), numpy.inf)
        for last, (rows, before) in enumerate(self._subsets.steps[size]):
            seconds[:, last, rows] = (smaller[:, :, before] + self._hop_s[:, last][None, :, None]).min(axis=1)
        return seconds


def first_smallest(seconds: Array) -> int:
    """The first index of the smallest value, where rounding makes no difference."""
    smallest = seconds.min()
    return int(numpy.argmax(seconds <= smallest + TIE * abs(smallest)))


def _step(subsets: list[tuple[int, ...]], row_of: dict[tuple[int, ...], int], node: int) -> Step:
    rows = [row for row, subset in enumerate(subsets) if node in subset]
    before = [row_of[tuple(other for other in subsets[row] if other != node)] for row in rows]
    return Step(numpy.array(rows, dtype=numpy.intp), numpy.array(before, dtype=numpy.intp))
