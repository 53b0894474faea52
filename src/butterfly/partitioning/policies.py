"""Simple ways to place layers, to compare a plan with. Each is what some other program does, or a person by hand.

They know nothing of pins or of a limit to the number of nodes: a comparison shows what those cost, too. The first three
use every node that can be used, as the cluster lists them, and check no memory before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, permutations

import msgspec

from butterfly.partitioning import costs
from butterfly.partitioning.placement_edits import is_within_memory
from butterfly.partitioning.predicting import predict
from butterfly.partitioning.problem import Placement, Problem, best_of
from butterfly.partitioning.solve import solve
from butterfly.specs import ClusterSpec, LinkSpec, ModelFootprint, Plan, PlanConstraints, Spec, WorkloadSpec

Policy = Callable[[Problem], Placement | None]


class PolicyResult(Spec, frozen=True):
    """What a policy came to: a plan, or why there is none."""

    name: str
    plan: Plan | None
    reason: str = ""


def compare(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec,
    constraints: PlanConstraints = PlanConstraints(),  # noqa: B008 - frozen
) -> tuple[PolicyResult, ...]:
    """What each policy would give for the same model, workload and nodes that may be used."""
    problem = Problem.of(model, cluster, workload, PlanConstraints(exclude=constraints.exclude))
    return tuple(_result(name, policy(problem), problem, workload) for name, policy in POLICIES.items())


def even(problem: Problem) -> Placement | None:
    """As many layers on each node."""
    return _in_listed_order(problem, [1.0] * problem.num_nodes)


def by_memory(problem: Problem) -> Placement | None:
    """Layers in proportion to memory."""
    return _in_listed_order(problem, [float(capacity) for capacity in problem.capacity])


def by_flops(problem: Problem) -> Placement | None:
    """Layers in proportion to speed: of a batch of tokens, where it was measured or is declared."""
    layers_s = [
        sum(
            costs.layer_s(node, problem.model, layer, costs.ROWS_PER_WEIGHT_PASS, problem.context)
            for layer in range(problem.num_layers)
        )
        for node in problem.nodes
    ]
    return _in_listed_order(problem, [1 / seconds if seconds else 1.0 for seconds in layers_s])


def network_blind(problem: Problem) -> Placement | None:
    """The best plan for a network that costs nothing."""
    ends = (costs.COORDINATOR, *problem.names)
    free = {
        (a, b): LinkSpec(source=a, target=b, latency_s=0.0, bandwidth_bytes_per_s=float("inf"), software_s=0.0)
        for a, b in permutations(ends, 2)
    }
    found = solve(replace(problem, links=free, _costs={}))
    return None if found is None else found.placement


def one_node(problem: Problem) -> Placement | None:
    """Everything on the node that is best at it."""
    alone = [Placement((node,), (problem.num_layers,)) for node in range(problem.num_nodes)]
    fitting = [placement for placement in alone if is_within_memory(problem, placement)]
    return best_of(problem, fitting) if fitting else None


POLICIES: Mapping[str, Policy] = {
    "even": even,
    "by memory": by_memory,
    "by FLOPS": by_flops,
    "network-blind": network_blind,
    "one node": one_node,
}


def _in_listed_order(problem: Problem, shares: Sequence[float]) -> Placement | None:
    """At least one layer on each node; on the first ones alone when there are more nodes than layers."""
    nodes = tuple(range(min(problem.num_nodes, problem.num_layers)))
    if not nodes:
        return None
    counts = _largest_remainders(problem.num_layers, shares[: len(nodes)])
    return Placement(nodes, tuple(accumulate(counts)))


def _largest_remainders(num_layers: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers of layers in these proportions, none 0; ties go to the earlier one."""
    wanted = [num_layers * share / sum(shares) for share in shares]
    counts = [max(1, int(exact)) for exact in wanted]
    while sum(counts) != num_layers:
        missing = 1 if sum(counts) < num_layers else -1
        able = [i for i, count in enumerate(counts) if count + missing >= 1]
        counts[max(able, key=lambda i: (missing * (wanted[i] - counts[i]), -i))] += missing
    return counts


def _result(name: str, placement: Placement | None, problem: Problem, workload: WorkloadSpec) -> PolicyResult:
    if placement is None:
        return PolicyResult(
            name=name, plan=None, reason="no node holds everything" if name == "one node" else "no plan fits"
        )
    last = len(placement.nodes) - 1
    for i, (node, start, end) in enumerate(placement.ranges()):
        needed = problem.needed_bytes(start, end, is_first=i == 0, is_last=i == last)
        if needed > problem.capacity[node]:
            has = f"node {problem.names[node]} would need {needed:,} bytes, it has {problem.capacity[node]:,}"
            return PolicyResult(name=name, plan=None, reason=f"does not fit: {has}")
    made = predict(problem, placement, workload)
    return PolicyResult(name=name, plan=msgspec.structs.replace(made, gap=0.0))
