"""How fast one pipeline of a fleet is: on all of some nodes, with some of the streams. A quick bound, and the truth.

Nodes that differ in nothing but their names (and in nothing that links say of them) are one kind, and what was found
for a pipeline holds for every other one with as many nodes of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple

import msgspec
import numpy
import numpy.typing as npt

from butterfly.partitioning.costs import COORDINATOR
from butterfly.partitioning.problem import BatchCosts, Problem, Solution
from butterfly.partitioning.solve import solve
from butterfly.specs import ClusterSpec, LinkSpec, ModelFootprint, PlanConstraints, WorkloadSpec

HALVINGS = 30  # of an interval of seconds, for the bound
ROUNDING = 1e-9  # relative: a bound is loosened by as much


class Pipeline(NamedTuple):
    """The numbers of its nodes, ascending, and how many of the streams it has."""

    nodes: tuple[int, ...]
    num_streams: int


class _Rows(NamedTuple):
    """Of each node of a pipeline, those with the quickest layers first."""

    step_s: list[float]
    layer_s: list[float]
    least: list[int]  # layers
    most: list[int]


@dataclass(frozen=True)
class Question:
    """What a fleet is asked for. The objective of `workload` is throughput."""

    model: ModelFootprint
    cluster: ClusterSpec
    workload: WorkloadSpec
    constraints: PlanConstraints

    @cached_property
    def problem(self) -> Problem:
        """Of one pipeline that may use every node: the numbers of nodes are those in here."""
        return Problem.of(self.model, self.cluster, self.workload, self.constraints)

    def share(self, num_streams: int) -> WorkloadSpec:
        """What a pipeline with so many of the streams must hold."""
        workload = self.workload
        kv_tokens = ceil(workload.kv_tokens * num_streams / workload.concurrency)
        return msgspec.structs.replace(workload, concurrency=num_streams, kv_tokens=kv_tokens)

    def problem_of(self, pipeline: Pipeline, *, use_all: bool) -> Problem:
        """Of this pipeline by itself."""
        names = {self.problem.names[node] for node in pipeline.nodes}
        cluster = ClusterSpec(
            nodes=tuple(self.problem.nodes[node] for node in pipeline.nodes), links=self._links_among(names)
        )
        pins = tuple(pin for pin in self.constraints.layers if pin.node in names)
        return Problem.of(
            self.model, cluster, self.share(pipeline.num_streams), PlanConstraints(layers=pins, use_all=use_all)
        )

    def _links_among(self, names: set[str]) -> tuple[LinkSpec, ...]:
        outside = set(self.problem.names) - names
        return tuple(link for link in self.cluster.links if not {link.source, link.target} & outside)


class PipelineSpeeds:
    """Tokens per second of pipelines. What was computed once is kept."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.num_solved = 0
        self._kinds = _kinds(question.problem)
        self._bounds: dict[Pipeline, float] = {}
        self._solved: dict[Pipeline, float] = {}
        self._sums: dict[int, npt.NDArray[numpy.int64]] = {}  # see _by_size

    def form(self, pipeline: Pipeline) -> Pipeline:
        """The same for all pipelines that are equally fast because their nodes are of the same kinds."""
        return Pipeline(tuple(sorted(self._kinds[node] for node in pipeline.nodes)), pipeline.num_streams)

    def is_solved(self, pipeline: Pipeline) -> bool:
        return self.form(pipeline) in self._solved

    def solved(self, pipeline: Pipeline) -> float:
        """What the best plan with a stage on each of these nodes gives; 0: none fits."""
        form = self.form(pipeline)
        if form not in self._solved:
            self.num_solved += 1
            solution = solve(self.question.problem_of(pipeline, use_all=True))
            self._solved[form] = _per_s(solution)
        return self._solved[form]

    def at_most(self, pipeline: Pipeline) -> float:
        """No pipeline with a stage on each of these nodes gives more; 0: none fits, by the sizes of layers alone."""
        form = self.form(pipeline)
        if form not in self._bounds:
            self._bounds[form] = self._at_most(pipeline)
        return self._bounds[form]

    def missing_layers(self, pipeline: Pipeline) -> int:
        """How many layers its memory falls short by: those that no node has room for, and one for each useless node."""
        most = self._layers_in_memory(pipeline)
        return max(0, self.question.problem.num_layers - int(most.sum())) + int((most < 1).sum())

    def _at_most(self, pipeline: Pipeline) -> float:
        problem, (nodes, num_streams) = self.question.problem, pipeline
        num_stages = len(nodes)
        if num_stages > problem.num_layers or self.missing_layers(pipeline):
            return 0.0
        batch = problem.costs_of(ceil(num_streams / num_stages))
        rows = self._rows(pipeline, batch)
        if any(least > most for least, most in zip(rows.least, rows.most, strict=True)):
            return 0.0
        beside_s, rounds = _beside_s(batch, nodes), min(num_stages, num_streams)
        pairs = list(zip(rows.layer_s, rows.most, strict=True))
        low = 0.0
        high = beside_s + sum(seconds * most for seconds, most in pairs)
        high += rounds * max(step + one * most for step, (one, most) in zip(rows.step_s, pairs, strict=True))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if _is_enough(rows, middle - beside_s, middle / rounds, problem.num_layers):
                high = middle
            else:
                low = middle
        return num_streams / low * (1 + ROUNDING) if low else float("inf")

    def _rows(self, pipeline: Pipeline, batch: BatchCosts) -> _Rows:
        nodes = list(pipeline.nodes)
        pins = self.question.problem.pins
        layer_s = batch.layer_s[nodes].min(axis=1)
        room = self._layers_in_memory(pipeline)
        rows = []
        for i in numpy.argsort(layer_s, kind="stable").tolist():
            start, end = pins.get(nodes[i], (0, 0))
            least, most = (end - start, min(end - start, int(room[i]))) if end else (1, int(room[i]))
            rows.append((float(batch.step_s[nodes[i]]), float(layer_s[i]), least, most))
        return _Rows(*(list(column) for column in zip(*rows, strict=True)))

    def _layers_in_memory(self, pipeline: Pipeline) -> npt.NDArray[numpy.int64]:
        """[node of the pipeline]: how many layers fit on it, counting the smallest."""
        problem = self.question.problem
        room = problem.capacity[list(pipeline.nodes)] - problem.stage_bytes
        by_size = self._by_size(pipeline.num_streams)
        return numpy.where(room < 0, 0, numpy.searchsorted(by_size, room, side="right")).astype(numpy.int64)

    def _by_size(self, num_streams: int) -> npt.NDArray[numpy.int64]:
        """[layer]: bytes of the smallest layers up to this one, with the KV cache of so many streams."""
        if num_streams not in self._sums:
            model, question = self.question.model, self.question
            kv_tokens = question.share(num_streams).total_kv_tokens(min(question.workload.context, model.max_context))
            sizes = zip(model.layer_weight_bytes, model.kv_bytes_per_token, strict=True)
            self._sums[num_streams] = numpy.cumsum(sorted(weights + kv * kv_tokens for weights, kv in sizes))
        return self._sums[num_streams]


def _per_s(solution: Solution | None) -> float:
    if solution is None:
        return 0.0
    return 1 / solution.cost_s if solution.cost_s else float("inf")


def _is_enough(rows: _Rows, compute_s: float, ceiling_s: float, num_layers: int) -> bool:
    """Whether all layers can be done in `compute_s` by stages that take no longer than the ceiling each.

    Each node has at least its least layers, and the others go to the quickest.
    """
    spare, rooms = num_layers, []
    for step_s, layer_s, least, most in zip(*rows, strict=True):
        room_s = ceiling_s - step_s
        if room_s < 0:
            return False
        in_time = min(most, int(room_s / layer_s * (1 + ROUNDING) + ROUNDING)) if layer_s else most
        if in_time < least:
            return False
        spare -= least
        compute_s -= least * layer_s
        rooms.append(in_time - least)
    for layer_s, room in zip(rows.layer_s, rooms, strict=True):
        taken = min(room, spare)
        spare -= taken
        compute_s -= taken * layer_s
    return spare == 0 and compute_s >= -ROUNDING * ceiling_s


def _beside_s(batch: BatchCosts, nodes: tuple[int, ...]) -> float:
    """What a trip through these nodes takes at least beside what each layer takes at its quickest.

    Each node but the first is entered from one of the others, and each layer takes its node's time for the quickest
    layer and what it takes more than that everywhere.
    """
    chosen = list(nodes)
    layer_s = batch.layer_s[chosen]
    beyond_s = (layer_s - layer_s.min(axis=1, keepdims=True)).min(axis=0).sum()
    entered_s = batch.hop_s[numpy.ix_(chosen, chosen)].min(axis=0) if len(chosen) > 1 else numpy.zeros(1)
    ends_s = batch.head_s[chosen].min() + batch.out_s[chosen].min() + batch.back_s[chosen].min()
    return float(beyond_s + entered_s.sum() - entered_s.max() + ends_s + batch.step_s[chosen].sum())


def _kinds(problem: Problem) -> list[int]:
    """[node]: the number of the first node that it could change places with."""
    kinds: list[int] = []
    for node in range(problem.num_nodes):
        alike = (kind for kind in dict.fromkeys(kinds) if _are_alike(problem, kind, node))
        kinds.append(next(alike, node))
    return kinds


def _are_alike(problem: Problem, a: int, b: int) -> bool:
    one, other = (msgspec.structs.replace(problem.nodes[node], name="", site="") for node in (a, b))
    if one != other or a in problem.pins or b in problem.pins:
        return False
    first, second = problem.names[a], problem.names[b]
    others = [COORDINATOR, *(name for name in problem.names if name not in (first, second))]
    pairs = [((first, second), (second, first))]
    pairs += [((first, name), (second, name)) for name in others] + [((name, first), (name, second)) for name in others]
    return all(_rates(problem.link(*ends)) == _rates(problem.link(*same)) for ends, same in pairs)


def _rates(link: LinkSpec) -> LinkSpec:
    return msgspec.structs.replace(link, source="", target="")
