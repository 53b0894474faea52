"""Several pipelines side by side, each with the whole model on nodes of its own: for throughput.

A pipeline's step passes every link of it, so beyond some number of nodes another one adds more latency than it takes
work away. Parted, each part decodes its own streams, at the price of another copy of the weights.
"""

from __future__ import annotations

import msgspec

from butterfly.errors import InfeasiblePlanError, PlanError
from butterfly.partitioning.checks import check_input
from butterfly.partitioning.fleet_bound import fleet_bound
from butterfly.partitioning.fleet_partitions import MAX_NODES, MAX_TABLE_WORK, best_partition, table_work
from butterfly.partitioning.fleet_search import search_fleet
from butterfly.partitioning.fleets import BETTER, FleetRules
from butterfly.partitioning.pipeline_speeds import Pipeline, PipelineSpeeds, Question
from butterfly.partitioning.planner import plan
from butterfly.partitioning.predicting import predict
from butterfly.partitioning.solve import solve
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, PlanConstraints, Spec, WorkloadSpec

_PROVEN = 1e-8  # relative: rounding, on the way from costs to speeds


class Fleet(Spec, frozen=True):
    """Pipelines that share the streams, and what they decode together."""

    pipelines: tuple[Plan, ...]  # the fastest first; `concurrency` is how many of the streams each has
    predicted_tokens_per_s: float
    bound_tokens_per_s: float  # no fleet under the same constraints gives more
    gap: float  # how much of the bound is missing; 0: proven that no fleet is faster
    single_tokens_per_s: float  # what one pipeline that may use every node gives; 0: none fits
    left_out: tuple[str, ...]  # nodes of the cluster that hold nothing


def plan_replicas(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec,
    constraints: PlanConstraints = PlanConstraints(),  # noqa: B008 - frozen
    max_replicas: int = 0,
) -> Fleet:
    """Part the nodes and `workload.concurrency` streams into the pipelines that decode most tokens per second.

    At most `max_replicas` of them; 0: as many as pay. The objective is throughput, whatever the workload's is. Each
    pipeline has room for the KV cache of its streams. `constraints` hold for all together: a pinned node is in some
    pipeline, with its layers; `max_nodes` counts the nodes of all. Never slower than one pipeline.

    Raises InfeasiblePlanError when not even one pipeline fits, nor several, with what is missing for one; PlanError as
    `plan` does.
    """
    if max_replicas < 0:
        raise PlanError(f"there cannot be {max_replicas} pipelines")
    check_input(model, cluster, workload, constraints)
    question = Question(model, cluster, msgspec.structs.replace(workload, objective="throughput"), constraints)
    single, refusal = None, None
    try:
        single = plan(model, cluster, question.workload, constraints)
    except InfeasiblePlanError as error:
        refusal = error
    found, bound = _several(question, max_replicas, single)
    if single is not None and _sum(found) <= single.predicted_tokens_per_s * (1 + BETTER):
        found = (single,)
        bound = bound or single.predicted_tokens_per_s / (1 - single.gap)
    if refusal is not None and not found:
        raise refusal
    used = {stage.worker for one in found for stage in one.stages}
    given = _sum(found)
    return Fleet(
        pipelines=found,
        predicted_tokens_per_s=given,
        bound_tokens_per_s=max(bound, given),
        gap=0.0 if bound <= given * (1 + _PROVEN) else 1 - given / bound,
        single_tokens_per_s=single.predicted_tokens_per_s if single is not None else 0.0,
        left_out=tuple(node.name for node in cluster.nodes if node.name not in used),
    )


def _several(question: Question, max_replicas: int, single: Plan | None) -> tuple[tuple[Plan, ...], float]:
    """The fastest fleet that was found, and what no fleet exceeds: by trying all partitions where they are few.

    Nothing, and 0, where there is no choice.
    """
    if not question.problem.num_nodes:
        return (), 0.0
    speeds = PipelineSpeeds(question)
    rules = FleetRules.of(question, speeds, max_replicas)
    if rules.most_pipelines <= 1:
        return (), 0.0
    is_small = len(rules.useful) <= MAX_NODES and table_work(rules) <= MAX_TABLE_WORK
    in_single = {stage.worker for stage in single.stages} if single is not None else set()
    nodes = tuple(node for node, name in enumerate(question.problem.names) if name in in_single)
    found = best_partition(speeds, rules) if is_small else search_fleet(speeds, rules, nodes)
    bound = fleet_bound(question.problem, rules.useful, rules.num_streams)
    if found is None:
        return (), bound
    plans = [_plan(question, pipeline) for pipeline in found.pipelines]
    plans.sort(key=lambda one: (-one.predicted_tokens_per_s, [stage.worker for stage in one.stages]))
    return tuple(plans), min(bound, found.bound_tokens_per_s)


def _plan(question: Question, pipeline: Pipeline) -> Plan:
    problem = question.problem_of(pipeline, use_all=True)
    solution = solve(problem)
    if solution is None:
        raise PlanError(f"no plan for {', '.join(problem.names)}, which one was found for")
    return predict(problem, solution.placement, question.share(pipeline.num_streams), solution.lower_bound_s)


def _sum(plans: tuple[Plan, ...]) -> float:
    return sum(one.predicted_tokens_per_s for one in plans)
