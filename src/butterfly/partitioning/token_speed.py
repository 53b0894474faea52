"""A plan's prediction for one generated token at any context: what a measurement of it is compared with."""

from __future__ import annotations

from butterfly.partitioning.predicting import decode_stage_s, hops_s
from butterfly.partitioning.problem import Problem
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, StageSpeed, StreamSpeed, WorkloadSpec


def speed_at(plan: Plan, model: ModelFootprint, cluster: ClusterSpec, context: int) -> StreamSpeed:
    """Return where the time of a token goes that a lone stream generates with `context` tokens before it.

    `plan.predicted_tpot_s` is the same at half the workload's context. The cluster must have all nodes of the plan.
    """
    problem = Problem.of(model, cluster, WorkloadSpec())
    stages = tuple(
        StageSpeed(worker=stage.worker, compute_s=decode_stage_s(problem, stage, 1, context)) for stage in plan.stages
    )
    between_s = sum(hops_s(problem, plan.stages, 1))
    return StreamSpeed(context=context, tpot_s=sum(stage.compute_s for stage in stages) + between_s, stages=stages)
