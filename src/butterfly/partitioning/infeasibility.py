"""Why no placement fits, with figures, and the nearest changes that would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import msgspec

from butterfly.errors import InfeasiblePlanError
from butterfly.partitioning.feasibility import fits_somehow
from butterfly.partitioning.problem import Problem
from butterfly.partitioning.violations import violations
from butterfly.specs import ClusterSpec, ModelFootprint, NodeSpec, PlanConstraints, WorkloadSpec

_BITS_PER_BYTE = 8
_FEWEST_BITS = 2.0  # per weight: below, no quantisation that keeps a model useful is known
_BIT_STEPS = 10  # of a bit


@dataclass(frozen=True)
class Question:
    """What a plan was asked for."""

    model: ModelFootprint
    cluster: ClusterSpec
    workload: WorkloadSpec
    constraints: PlanConstraints

    @property
    def context(self) -> int:
        return min(self.workload.context, self.model.max_context)

    @property
    def problem(self) -> Problem:
        return Problem.of(self.model, self.cluster, self.workload, self.constraints)

    def fits(self) -> bool:
        return fits_somehow(self.problem)

    def with_context(self, context: int) -> Question:
        return self._with(workload=msgspec.structs.replace(self.workload, context=context))

    def with_concurrency(self, concurrency: int) -> Question:
        return self._with(workload=msgspec.structs.replace(self.workload, concurrency=concurrency))

    def with_constraints(self, constraints: PlanConstraints) -> Question:
        return self._with(constraints=constraints)

    def with_more_memory(self, extra_bytes: int) -> Question:
        nodes = tuple(
            msgspec.structs.replace(node, memory_bytes=node.memory_bytes + extra_bytes) for node in self.cluster.nodes
        )
        return self._with(cluster=msgspec.structs.replace(self.cluster, nodes=nodes))

    def with_another_node(self, memory_bytes: int) -> Question:
        taken = {node.name for node in self.cluster.nodes}
        name = next(name for name in (f"another-{i}" for i in range(len(taken) + 1)) if name not in taken)
        another = NodeSpec(name=name, memory_bytes=memory_bytes, memory_bandwidth_bytes_per_s=1.0)
        return self._with(cluster=msgspec.structs.replace(self.cluster, nodes=(*self.cluster.nodes, another)))

    def with_weights(self, share: float) -> Question:
        """Weights of layers, embedding and head at this share of their bytes."""
        model = msgspec.structs.replace(
            self.model,
            layer_weight_bytes=tuple(int(size * share) for size in self.model.layer_weight_bytes),
            embedding_bytes=int(self.model.embedding_bytes * share),
            head_bytes=int(self.model.head_bytes * share),
        )
        return self._with(model=model)

    def _with(
        self,
        model: ModelFootprint | None = None,
        cluster: ClusterSpec | None = None,
        workload: WorkloadSpec | None = None,
        constraints: PlanConstraints | None = None,
    ) -> Question:
        return Question(
            model=model or self.model,
            cluster=cluster or self.cluster,
            workload=workload or self.workload,
            constraints=constraints or self.constraints,
        )


def refuse(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec, constraints: PlanConstraints
) -> InfeasiblePlanError:
    """Return the error for a question that has no answer; `violations` has each reason.

    The changes are each of its own, and the smallest of its kind that fits.
    """
    question = Question(model, cluster, workload, constraints)
    reasons = violations(question.problem, constraints)
    changes = list(_changes(question))
    return InfeasiblePlanError(
        f"the model does not fit with {workload.concurrency} x {question.context} tokens of KV cache: "
        f"{'; '.join(reasons)}; " + (f"{' or '.join(changes)} would fit" if changes else "no single change would fit"),
        reasons,
    )


def _changes(asked: Question) -> Iterator[str]:
    """Each kind of change that helps at all, those that cost nothing but a wish first."""
    yield from _fewer_wishes(asked)
    context = _largest(lambda tokens: asked.with_context(tokens).fits(), asked.context - 1)
    if context:
        yield f"a context of {context} tokens"
    concurrency = _largest(lambda streams: asked.with_concurrency(streams).fits(), asked.workload.concurrency - 1)
    if concurrency:
        yield f"a concurrency of {concurrency}"
    yield from _fewer_bits(asked)
    all_bytes = _all_bytes(asked.problem)
    another = _smallest(lambda size: asked.with_another_node(size).fits(), all_bytes)
    if another is not None:
        yield f"one more node with {another:,} bytes"
    extra = _smallest(lambda size: asked.with_more_memory(size).fits(), all_bytes)
    if extra is not None:
        yield f"{extra:,} more bytes on each node"


def _fewer_wishes(asked: Question) -> Iterator[str]:
    wishes = asked.constraints
    if wishes.layers and asked.with_constraints(msgspec.structs.replace(wishes, layers=())).fits():
        yield "layers that are not pinned"
    for name in wishes.exclude:
        rest = tuple(other for other in wishes.exclude if other != name)
        if asked.with_constraints(msgspec.structs.replace(wishes, exclude=rest)).fits():
            yield f"using node {name}"
    num_nodes = asked.problem.num_nodes
    if wishes.max_nodes:
        more = _smallest(
            lambda extra: asked.with_constraints(
                msgspec.structs.replace(wishes, max_nodes=wishes.max_nodes + extra)
            ).fits(),
            num_nodes - wishes.max_nodes,
        )
        if more is not None:
            yield f"{wishes.max_nodes + more} nodes instead of {wishes.max_nodes}"
    if wishes.use_all:
        free = asked.with_constraints(msgspec.structs.replace(wishes, use_all=False))
        if free.fits():
            yield "leaving nodes out"


def _fewer_bits(asked: Question) -> Iterator[str]:
    """Bits per weight, in tenths, rounded such that it fits; of models whose number of weights is known."""
    num_params = sum(asked.model.num_layer_params)
    if not num_params:
        return
    bits = sum(asked.model.layer_weight_bytes) * _BITS_PER_BYTE / num_params
    most = ceil(bits * _BIT_STEPS) - 1
    fewer = _largest(lambda steps: asked.with_weights(steps / _BIT_STEPS / bits).fits(), most)
    if fewer is not None and fewer / _BIT_STEPS >= _FEWEST_BITS:
        yield f"{fewer / _BIT_STEPS:.1f} bits per weight (now {bits:.1f})"


def _all_bytes(problem: Problem) -> int:
    """A node with so much holds everything."""
    return int(problem.layer_ends_bytes[-1]) + problem.first_bytes + problem.last_bytes + problem.stage_bytes


def _smallest(holds: Callable[[int], bool], upper: int) -> int | None:
    """Return the smallest n in [0, upper] for which the monotone `holds` is true; None: for none."""
    if upper < 0 or not holds(upper):
        return None
    low, high = 0, upper
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _largest(holds: Callable[[int], bool], upper: int) -> int | None:
    """Return the largest n in [1, upper] for which `holds` is true, once it is true up to some n; None: for none."""
    cut = _smallest(lambda less: holds(upper - less), upper - 1)
    return None if cut is None else upper - cut
