"""How many layers each node gets: in proportion to memory, then the nearest counts that fit.

The search over cuts is exact: `nearest_fit` finds counts whenever any fit in the given order of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from butterfly.specs import ModelFootprint


@dataclass(frozen=True)
class MemoryProblem:
    """Cut the layers into one non-empty range per node, none over its node's memory."""

    capacities: tuple[int, ...]  # bytes of each node, in the order of the stages
    layer_ends: tuple[int, ...]  # running sum of what a layer needs: weights and KV; [0] is 0
    first_bytes: int  # what the first stage holds beyond its layers
    last_bytes: int

    @classmethod
    def of(cls, model: ModelFootprint, capacities: tuple[int, ...], kv_tokens: int) -> MemoryProblem:
        needs = [
            weights + kv * kv_tokens
            for weights, kv in zip(model.layer_weight_bytes, model.kv_bytes_per_token, strict=True)
        ]
        ends = tuple(accumulate(needs, initial=0))
        return cls(capacities, ends, model.embedding_bytes, model.head_bytes)

    @property
    def num_nodes(self) -> int:
        return len(self.capacities)

    @property
    def num_layers(self) -> int:
        return len(self.layer_ends) - 1

    def needed(self, node: int, start: int, end: int) -> int:
        """Bytes that layers [start, end) need on this node, with the ends of the model that come along."""
        first = self.first_bytes if node == 0 else 0
        last = self.last_bytes if node == self.num_nodes - 1 else 0
        return self.layer_ends[end] - self.layer_ends[start] + first + last

    def fits(self, node: int, start: int, end: int) -> bool:
        return self.needed(node, start, end) <= self.capacities[node]


def proportional_counts(num_layers: int, memories: tuple[int, ...]) -> tuple[int, ...]:
    """Share `num_layers` in proportion to memory by largest remainder, at least one each.

    Ties go to the earlier node. Needs num_layers >= len(memories) and a positive sum.
    """
    total = sum(memories)
    counts = [max(1, num_layers * memory // total) for memory in memories]
    by_remainder = sorted(range(len(memories)), key=lambda i: (-(num_layers * memories[i] % total), i))
    for i in by_remainder[: max(0, num_layers - sum(counts))]:
        counts[i] += 1
    while sum(counts) > num_layers:  # the "at least one each" gave out too many
        largest = max(range(len(counts)), key=lambda i: (counts[i], -i))
        counts[largest] -= 1
    return tuple(counts)


def nearest_fit(problem: MemoryProblem, wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the feasible counts nearest to `wanted` (least sum of squared differences), or None.

    Dynamic programme over (node, end of its range); of equally near ones the first in lexical order of
    the cuts from the back, so the answer is the same every time. O(nodes * layers^2).
    """
    num_nodes, num_layers = problem.num_nodes, problem.num_layers
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}  # end of the layers placed: cost, counts
    for node in range(num_nodes):
        last_end = num_layers - (num_nodes - 1 - node)  # leave one layer for each node to come
        first_end = num_layers if node == num_nodes - 1 else node + 1
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for start, (cost, counts) in best.items():
            for end in range(max(start + 1, first_end), last_end + 1):
                if not problem.fits(node, start, end):
                    if node < num_nodes - 1:
                        break  # more layers need more bytes
                    continue
                total = cost + (end - start - wanted[node]) ** 2
                if end not in following or total < following[end][0]:
                    following[end] = (total, (*counts, end - start))
        best = following
    return best[num_layers][1] if num_layers in best else None


def fits_anyhow(problem: MemoryProblem) -> bool:
    """Whether any cut fits."""
    return nearest_fit(problem, (1,) * problem.num_nodes) is not None
