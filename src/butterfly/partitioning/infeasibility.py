"""Why no placement fits, with figures, and the nearest change that would."""

from __future__ import annotations

from collections.abc import Callable

from butterfly.errors import InfeasiblePlanError
from butterfly.partitioning.placement import MemoryProblem, fits_anyhow, proportional_counts
from butterfly.specs import ModelFootprint, NodeSpec, WorkloadSpec


def refuse(
    model: ModelFootprint, nodes: tuple[NodeSpec, ...], workload: WorkloadSpec, context: int
) -> InfeasiblePlanError:
    """Return the error for a model that fits on these nodes in no way; `violations` has each reason."""
    capacities = tuple(node.memory_bytes for node in nodes)

    def fits(context: int, extra_bytes: int) -> bool:
        larger = tuple(capacity + extra_bytes for capacity in capacities)
        return fits_anyhow(MemoryProblem.of(model, larger, workload.total_kv_tokens(context)))

    problem = MemoryProblem.of(model, capacities, workload.total_kv_tokens(context))
    needed = problem.layer_ends[-1] + problem.first_bytes + problem.last_bytes
    extra = _smallest(lambda extra_bytes: fits(context, extra_bytes), needed)
    advice = f"{extra:,} more bytes on each node would fit"
    shorter = _smallest(lambda cut: fits(context - cut, 0), context - 1) if fits(1, 0) else None
    if shorter is not None:
        advice = f"a context of {context - shorter} tokens would fit, or {advice}"
    violations = _violations(nodes, problem, needed)
    return InfeasiblePlanError(
        f"the model does not fit with {workload.concurrency} x {context} tokens of KV cache: "
        f"{'; '.join(violations)}; {advice}",
        violations,
    )


def _violations(nodes: tuple[NodeSpec, ...], problem: MemoryProblem, needed: int) -> tuple[str, ...]:
    """The whole against the whole, then each node that is over under the share it should have."""
    violations = []
    if needed > sum(problem.capacities):
        violations.append(f"weights and KV cache need {needed:,} bytes, all nodes have {sum(problem.capacities):,}")
    start = 0
    for i, count in enumerate(proportional_counts(problem.num_layers, problem.capacities)):
        end = start + count
        if not problem.fits(i, start, end):
            violations.append(
                f"node {nodes[i].name} needs {problem.needed(i, start, end):,} bytes for layers "
                f"{start}-{end - 1}, has {problem.capacities[i]:,}"
            )
        start = end
    return tuple(violations)


def _smallest(holds: Callable[[int], bool], upper: int) -> int:
    """Return the smallest n in [0, upper] for which the monotone `holds` is true; holds(upper) must be."""
    low, high = 0, upper
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
