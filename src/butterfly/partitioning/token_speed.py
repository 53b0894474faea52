"""A plan's predictions for single steps: what measurements are compared with, and when a step is late."""

from __future__ import annotations

from butterfly.partitioning.predicting import decode_stage_s, hops_s, prefill_stage_s
from butterfly.partitioning.problem import Problem
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, StageSpeed, StreamSpeed, WorkloadSpec


def speed_at(plan: Plan, model: ModelFootprint, cluster: ClusterSpec, context: int) -> StreamSpeed:
    """Return where the time of a token goes that a lone stream generates with `context` tokens before it.

    `plan.predicted_tpot_s` is the same at the workload's mean context. The cluster must have all nodes of the plan.
    """
    problem = Problem.of(model, cluster, WorkloadSpec())
    stages = tuple(
        StageSpeed(worker=stage.worker, compute_s=decode_stage_s(problem, stage, 1, context)) for stage in plan.stages
    )
    between_s = sum(hops_s(problem, plan.stages, 1))
    return StreamSpeed(context=context, tpot_s=sum(stage.compute_s for stage in stages) + between_s, stages=stages)


def trip_s(plan: Plan, model: ModelFootprint, cluster: ClusterSpec, num_tokens: int) -> float:
    """Seconds that a step of so many tokens takes through all stages and links, the context as long as it may be.

    Whatever the tokens are: prompt or generated, whichever takes longer.
    """
    problem = Problem.of(model, cluster, WorkloadSpec())
    stages_s = (
        max(
            decode_stage_s(problem, stage, num_tokens, model.max_context),
            prefill_stage_s(problem, stage, num_tokens, model.max_context),
        )
        for stage in plan.stages
    )
    return sum(stages_s) + sum(hops_s(problem, plan.stages, num_tokens))
