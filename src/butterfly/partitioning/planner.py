"""`plan()`: from sizes, speeds and links to stages, with predictions, the bound, and what binds."""

from __future__ import annotations

import msgspec

from butterfly.errors import InfeasiblePlanError
from butterfly.partitioning.checks import check_input
from butterfly.partitioning.infeasibility import refuse
from butterfly.partitioning.predicting import predict
from butterfly.partitioning.problem import Problem, Solution
from butterfly.partitioning.solve import solve
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, PlanConstraints, WorkloadSpec


def plan(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec,
    constraints: PlanConstraints = PlanConstraints(),  # noqa: B008 - frozen
) -> Plan:
    """Place every layer such that the workload's objective costs least, no node over its memory.

    The order of the stages is the planner's choice, and so is which nodes hold nothing. KV cache is reserved for
    `workload.concurrency` sequences of `workload.context` tokens (never more than the model's context). `plan.gap` says
    what has been proven; `plan.pin_cost_s` what the constraints cost.

    Raises InfeasiblePlanError with every violation and the nearest change that would fit, PlanError for input that is
    no cluster, model, workload or constraint.
    """
    check_input(model, cluster, workload, constraints)
    problem = Problem.of(model, cluster, workload, constraints)
    if not problem.num_nodes:
        raise InfeasiblePlanError("no workers: a plan needs at least one", ("0 workers",))
    found = solve(problem)
    if found is None:
        raise refuse(model, cluster, workload, constraints)
    made = predict(problem, found.placement, workload, found.lower_bound_s)
    excluded = tuple(node.name for node in cluster.nodes if node.name in constraints.exclude)
    return msgspec.structs.replace(
        made,
        left_out=(*made.left_out, *excluded),
        pin_cost_s=_pin_cost_s(model, cluster, workload, constraints, found),
    )


def _pin_cost_s(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec, constraints: PlanConstraints, found: Solution
) -> float:
    """How much less the plan without any constraint costs."""
    if constraints == PlanConstraints():
        return 0.0
    free = solve(Problem.of(model, cluster, workload), (found.placement,) if not constraints.exclude else ())
    return max(0.0, found.cost_s - free.cost_s) if free is not None else 0.0
