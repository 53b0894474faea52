"""The planner's question as plain arrays, and the one judge of every answer.

Solvers search; `Problem.evaluate` alone says what a placement costs, and `Problem.fits` whether it is allowed. A test
that compares a solver with brute force compares with these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy
import numpy.typing as npt

from butterfly.partitioning import costs
from butterfly.partitioning.objective import Array, batch_tokens, cost
from butterfly.specs import ClusterSpec, LinkSpec, ModelFootprint, NodeSpec, Objective, PlanConstraints, WorkloadSpec


class Placement(NamedTuple):
    """Stage i is on node `nodes[i]` and has the layers up to `ends[i]`; the first begins with layer 0."""

    nodes: tuple[int, ...]  # numbers of nodes
    ends: tuple[int, ...]  # ascending; the last is the number of layers

    def ranges(self) -> list[tuple[int, int, int]]:
        """(node, start, end) of each stage."""
        bounds = pairwise((0, *self.ends))
        return [(node, start, end) for node, (start, end) in zip(self.nodes, bounds, strict=True)]


class Score(NamedTuple):
    cost_s: float
    trip_s: float
    slowest_s: float


class Solution(NamedTuple):
    placement: Placement
    cost_s: float
    lower_bound_s: float  # no placement costs less; equal to `cost_s` when that is proven optimal


@dataclass(frozen=True)
class BatchCosts:
    """Seconds of a batch in a pipeline of a certain number of stages."""

    layer_s: Array  # [node, layer]
    step_s: Array  # [node]: beside layers and head
    head_s: Array  # [node]
    hop_s: Array  # [node, node]: from the one to the other; infinite on the diagonal
    occupied_s: Array  # [node, node]: how long the batch keeps that link busy; 0 on the diagonal
    out_s: Array  # [node]: from the coordinator
    back_s: Array  # [node]: to the coordinator

    @cached_property
    def layer_ends_s(self) -> Array:
        """[node, number of layers + 1]: running sums of `layer_s`, from 0."""
        zeros = numpy.zeros((len(self.layer_s), 1))
        return numpy.concatenate([zeros, numpy.cumsum(self.layer_s, axis=1)], axis=1)


@dataclass(frozen=True)
class Problem:
    """Which node gets which layers. All nodes in here may be used; excluded ones are not in here."""

    names: tuple[str, ...]
    capacity: npt.NDArray[numpy.int64]  # [node] bytes
    layer_bytes: npt.NDArray[numpy.int64]  # [layer]: weights, and KV cache of the workload
    first_bytes: int  # what the first stage holds beyond its layers
    last_bytes: int
    stage_bytes: int  # what every stage needs beside its layers; the last one has no border, but is treated alike
    objective: Objective
    concurrency: int
    min_stages: int
    max_stages: int
    pins: dict[int, tuple[int, int]]  # node -> exactly these layers
    model: ModelFootprint
    nodes: tuple[NodeSpec, ...]
    links: dict[tuple[str, str], LinkSpec]
    context: int  # tokens in the KV cache of each sequence, for times
    _costs: dict[int, BatchCosts] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        model: ModelFootprint,
        cluster: ClusterSpec,
        workload: WorkloadSpec,
        constraints: PlanConstraints = PlanConstraints(),  # noqa: B008 - frozen
    ) -> Problem:
        """Everything must have been checked (see `checks`)."""
        nodes = tuple(node for node in cluster.nodes if node.name not in constraints.exclude)
        context = min(workload.context, model.max_context)
        kv_tokens = workload.total_kv_tokens(context)
        num_layers = len(model.layer_weight_bytes)
        sizes = zip(model.layer_weight_bytes, model.kv_bytes_per_token, strict=True)
        most = min(len(nodes), num_layers)
        numbers = {node.name: number for number, node in enumerate(nodes)}
        return cls(
            names=tuple(node.name for node in nodes),
            capacity=numpy.array([node.memory_bytes for node in nodes], dtype=numpy.int64),
            layer_bytes=numpy.array([weights + kv * kv_tokens for weights, kv in sizes], dtype=numpy.int64),
            first_bytes=model.embedding_bytes,
            last_bytes=model.head_bytes,
            stage_bytes=model.activation_bytes_per_token * workload.max_num_batched_tokens
            + model.border_bytes_per_token * kv_tokens,
            objective=workload.objective,
            concurrency=workload.concurrency,
            min_stages=len(nodes) if constraints.use_all else 1,
            max_stages=min(most, constraints.max_nodes) if constraints.max_nodes else most,
            pins={numbers[pin.node]: (pin.start, pin.end) for pin in constraints.layers},
            model=model,
            nodes=nodes,
            links=_links(cluster),
            context=workload.context_for_times(model.max_context),
        )

    @property
    def num_nodes(self) -> int:
        return len(self.names)

    @property
    def num_layers(self) -> int:
        return len(self.layer_bytes)

    @cached_property
    def layer_ends_bytes(self) -> npt.NDArray[numpy.int64]:
        """[number of layers + 1]: running sums of `layer_bytes`, from 0."""
        return numpy.concatenate([numpy.zeros(1, dtype=numpy.int64), numpy.cumsum(self.layer_bytes)])

    @cached_property
    def is_uniform(self) -> bool:
        """Whether layers differ in nothing that matters here: then only their numbers do, and not which they are."""
        return len(set(self.layer_forms)) == 1

    @cached_property
    def layer_forms(self) -> tuple[tuple[int, int, int, int], ...]:
        """[layer]: what its times depend on. Layers of one form take the same."""
        model = self.model
        return tuple(
            (
                model.layer_kind(layer),
                model.layer_weight_bytes[layer],
                model.kv_bytes_per_token[layer],
                model.num_layer_params[layer] if model.num_layer_params else 0,
            )
            for layer in range(self.num_layers)
        )

    def num_tokens(self, num_stages: int) -> int:
        """How many tokens a batch has in a pipeline of so many stages."""
        return batch_tokens(self.objective, self.concurrency, num_stages)

    def costs(self, num_stages: int) -> BatchCosts:
        """Times in a pipeline of so many stages: how many tokens a batch has depends on it."""
        return self.costs_of(self.num_tokens(num_stages))

    def costs_of(self, num_tokens: int) -> BatchCosts:
        """Times of a batch of so many tokens."""
        if num_tokens not in self._costs:
            self._costs[num_tokens] = self._batch_costs(num_tokens)
        return self._costs[num_tokens]

    def cost(self, trip_s: float, slowest_s: float, num_stages: int) -> float:
        return float(cost(self.objective, trip_s, slowest_s, num_stages, self.concurrency))

    def fits(self, placement: Placement) -> bool:
        """Whether it is allowed: complete, in order, within memory, as many stages as asked, pins kept."""
        nodes, ends = placement
        last = len(nodes) - 1
        if not self.min_stages <= len(nodes) <= self.max_stages or len(set(nodes)) < len(nodes):
            return False
        if ends[-1] != self.num_layers or not set(self.pins) <= set(nodes):
            return False
        for i, (node, start, end) in enumerate(placement.ranges()):
            if start >= end or self.pins.get(node, (start, end)) != (start, end):
                return False
            if self.needed_bytes(start, end, is_first=i == 0, is_last=i == last) > self.capacity[node]:
                return False
        return True

    def needed_bytes(self, start: int, end: int, *, is_first: bool, is_last: bool) -> int:
        """Bytes that a stage with the layers [start, end) needs."""
        layers = int(self.layer_ends_bytes[end] - self.layer_ends_bytes[start])
        return layers + is_first * self.first_bytes + is_last * self.last_bytes + self.stage_bytes

    def evaluate(self, placement: Placement) -> Score:
        """What a placement costs, whether it fits or not."""
        batch = self.costs(len(placement.nodes))
        stages = [
            float(batch.step_s[node] + batch.layer_ends_s[node, end] - batch.layer_ends_s[node, start])
            for node, start, end in placement.ranges()
        ]
        stages[-1] += float(batch.head_s[placement.nodes[-1]])
        hops = list(pairwise(placement.nodes))
        trip_s = sum(stages) + sum(float(batch.hop_s[hop]) for hop in hops)
        trip_s += float(batch.out_s[placement.nodes[0]] + batch.back_s[placement.nodes[-1]])
        slowest_s = max(*stages, *(float(batch.occupied_s[hop]) for hop in hops), 0.0)
        return Score(self.cost(trip_s, slowest_s, len(placement.nodes)), trip_s, slowest_s)

    def link(self, source: str, target: str) -> LinkSpec:
        """As measured, or as measured the other way round, or the default."""
        found = self.links.get((source, target)) or self.links.get((target, source))
        return found or costs.default_link(source, target)

    def _batch_costs(self, num_tokens: int) -> BatchCosts:
        model, nodes = self.model, self.nodes
        first_of = {form: self.layer_forms.index(form) for form in self.layer_forms}
        layer_s = numpy.empty((len(nodes), self.num_layers))
        for row, node in enumerate(nodes):
            by_form = {
                form: costs.layer_s(node, model, layer, num_tokens, self.context) for form, layer in first_of.items()
            }
            layer_s[row] = [by_form[form] for form in self.layer_forms]
        ids, hidden = num_tokens * costs.TOKEN_BYTES, num_tokens * model.hidden_bytes_per_token
        hop_s = numpy.full((len(nodes), len(nodes)), numpy.inf)
        occupied_s = numpy.zeros((len(nodes), len(nodes)))
        for a, source in enumerate(self.names):
            for b, target in enumerate(self.names):
                if a != b:
                    link = self.link(source, target)
                    hop_s[a, b] = costs.hidden_hop_s(link, hidden)
                    occupied_s[a, b] = costs.carry(link, hidden).occupied_s
        return BatchCosts(
            layer_s=layer_s,
            step_s=numpy.array([costs.step_s(node) for node in nodes]),
            head_s=numpy.array([costs.head_s(node, model, num_tokens) for node in nodes]),
            hop_s=hop_s,
            occupied_s=occupied_s,
            out_s=numpy.array([costs.hop_s(self.link(costs.COORDINATOR, name), ids) for name in self.names]),
            back_s=numpy.array([costs.hop_s(self.link(name, costs.COORDINATOR), ids) for name in self.names]),
        )


def best_of(problem: Problem, placements: Sequence[Placement]) -> Placement:
    """The cheapest; of equal ones the one with fewer stages, then the first by nodes and cuts."""
    return min(placements, key=lambda one: (problem.evaluate(one).cost_s, len(one.nodes), *one))


def _links(cluster: ClusterSpec) -> dict[tuple[str, str], LinkSpec]:
    found: dict[tuple[str, str], LinkSpec] = {}
    for link in cluster.links:
        found.setdefault((link.source, link.target), link)
    return found
