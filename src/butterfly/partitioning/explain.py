"""A plan for people: its stages, its figures, and for each boundary and each node left out why it is so."""

from __future__ import annotations

from butterfly.errors import PlanError
from butterfly.partitioning.problem import Placement, Problem
from butterfly.partitioning.reasons import boundary_reasons, left_out_reasons
from butterfly.partitioning.wording import COST_NAMES, sized, table, timed
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, PlanConstraints, WorkloadSpec

_HEADINGS = ("node", "layers", "ends", "weights", "KV cache", "activations", "memory", "compute", "hop to it")
_PERCENT = 100


def explain(
    plan: Plan,
    model: ModelFootprint,
    cluster: ClusterSpec,
    constraints: PlanConstraints = PlanConstraints(),  # noqa: B008 - frozen
) -> str:
    """Return a table of stages, then figures, what binds, and reasons. No trailing newline.

    Times are of one decode token of one stream. `constraints` are those that the plan was made under. Raises PlanError
    when the plan names a node that the cluster does not have.
    """
    problem = Problem.of(model, cluster, planned_workload(plan, model), PlanConstraints())
    placement = placement_of(plan, problem)
    boundaries = boundary_reasons(problem, placement, constraints)
    left_out = left_out_reasons(problem, placement, plan.left_out, constraints)
    reasons = [f"boundary {reason}" for reason in boundaries]
    reasons += [f"left out {name}: {reason}" for name, reason in left_out]
    return "\n".join([*_stages(plan, cluster), *_figures(plan), *reasons])


def planned_workload(plan: Plan, model: ModelFootprint) -> WorkloadSpec:
    """What a plan was made for, as far as it tells."""
    step_bytes = max(stage.activation_bytes for stage in plan.stages)
    asked = WorkloadSpec()
    per_token = model.activation_bytes_per_token
    return WorkloadSpec(
        concurrency=plan.concurrency,
        context=max(1, plan.kv_capacity_tokens // plan.concurrency),
        objective=plan.objective,
        mean_context=plan.mean_context,
        prompt_tokens=plan.prompt_tokens or asked.prompt_tokens,
        max_num_batched_tokens=step_bytes // per_token if per_token else asked.max_num_batched_tokens,
    )


def placement_of(plan: Plan, problem: Problem) -> Placement:
    """Raises PlanError for a node that the problem does not have."""
    for stage in plan.stages:
        if stage.worker not in problem.names:
            raise PlanError(f"the plan names node {stage.worker}, which is not in the cluster")
    return Placement(
        tuple(problem.names.index(stage.worker) for stage in plan.stages), tuple(stage.end for stage in plan.stages)
    )


def _stages(plan: Plan, cluster: ClusterSpec) -> list[str]:
    memory_bytes = {node.name: node.memory_bytes for node in cluster.nodes}
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for stage in plan.stages:
        ends = " + ".join(name for name, has in (("embedding", stage.embedding), ("head", stage.head)) if has)
        share = stage.num_bytes / memory_bytes[stage.worker]
        rows.append(
            (
                stage.worker,
                f"{stage.start}-{stage.end - 1} ({stage.num_layers})",
                ends or "-",
                sized(stage.weight_bytes),
                sized(stage.kv_bytes),
                sized(stage.activation_bytes),
                f"{share:.0%} of {sized(memory_bytes[stage.worker])}",
                timed(stage.predicted_compute_s),
                timed(stage.predicted_hop_s),
            )
        )
    rows.append(("(back)", *[""] * (len(_HEADINGS) - 2), timed(plan.return_hop_s)))
    return table(rows)


def _figures(plan: Plan) -> list[str]:
    compute_s = sum(stage.predicted_compute_s for stage in plan.stages)
    hops_s = plan.return_hop_s + sum(stage.predicted_hop_s for stage in plan.stages)
    tpot_s = plan.predicted_tpot_s
    share = plan.bound_tpot_s / tpot_s if tpot_s else 1.0
    streams = f"{plan.concurrency} stream{'s' if plan.concurrency > 1 else ''}"
    quality = (
        "proven optimal" if plan.gap == 0 else f"another plan might save {plan.gap * _PERCENT:.1f} % of it at most"
    )
    lines = [
        f"TTFT: {timed(plan.predicted_ttft_s)} for a prompt of {plan.prompt_tokens} tokens",
        f"TPOT: {timed(tpot_s)}: {timed(compute_s)} of compute, {timed(hops_s)} of links and software",
        f"bound: {timed(plan.bound_tpot_s)} by memory and links alone, {share:.0%} of the TPOT",
        f"throughput: {plan.predicted_tokens_per_s:.1f} tokens/s with {streams}",
        f"KV cache: {plan.kv_capacity_tokens} tokens on every stage",
        f"objective {plan.objective}: {timed(plan.cost_s)} for {COST_NAMES[plan.objective]}, {quality}",
        f"bound by: {plan.binding}",
    ]
    coded = [f"{stage.worker} in {stage.codec}" for stage in plan.stages if stage.codec]
    if coded:
        lines.append(f"hidden states of decode reach {', '.join(coded)}")
    if plan.pin_cost_s:
        lines.append(f"the constraints cost {timed(plan.pin_cost_s)} of that")
    return lines
