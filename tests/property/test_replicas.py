"""Fleets against every fleet there is, on clusters small enough; and what holds of any fleet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.errors import InfeasiblePlanError
from butterfly.partitioning import plan
from butterfly.partitioning.fleet_bound import fleet_bound
from butterfly.partitioning.fleet_search import search_fleet
from butterfly.partitioning.fleets import FleetRules
from butterfly.partitioning.pipeline_speeds import Pipeline, PipelineSpeeds, Question
from butterfly.partitioning.problem import Problem
from butterfly.partitioning.replicas import Fleet, plan_replicas
from butterfly.specs import NodeSpec, PlanConstraints
from tests.support.problems import Case, any_cases, least_cost_s, random_case

EQUAL = 1e-8  # relative
Group = tuple[str, ...]


def for_throughput(case: Case, concurrency: int = 0) -> Case:
    """With four streams at most, and profiles of the kinds of layers that the model has, no more."""
    streams = min(concurrency or case.workload.concurrency, 4)
    workload = msgspec.structs.replace(case.workload, objective="throughput", concurrency=streams)
    num_kinds = 1 + max(case.model.layer_kinds, default=0)
    return case.with_nodes(*(profiled(node, num_kinds) for node in case.cluster.nodes))._replace(workload=workload)


def profiled(node: NodeSpec, num_kinds: int) -> NodeSpec:
    if node.profile is None:
        return node
    profile = msgspec.structs.replace(node.profile, layers=node.profile.layers[:num_kinds])
    return msgspec.structs.replace(node, profile=profile)


def roomy(case: Case) -> Case:
    """With room for several copies of the model."""
    nodes = (msgspec.structs.replace(node, memory_bytes=4 * node.memory_bytes) for node in case.cluster.nodes)
    return case.with_nodes(*nodes)


tight_or_roomy = st.sampled_from([roomy, roomy, lambda case: case])
small_cases = st.builds(
    lambda change, case: change(for_throughput(case)),
    tight_or_roomy,
    any_cases(most_nodes=3, most_layers=4, constrained=True),
)
larger_cases = st.builds(
    lambda change, case: change(for_throughput(case)),
    tight_or_roomy,
    any_cases(most_nodes=5, most_layers=6, constrained=True),
)


def try_fleet(case: Case, max_replicas: int = 0) -> Fleet | None:
    try:
        return plan_replicas(*case, max_replicas)
    except InfeasiblePlanError:
        return None


def question(case: Case) -> Question:
    return Question(*case)


# ------------------------------------------------------------------------------------ brute force


def fastest(case: Case, max_replicas: int) -> float:
    """Tokens per second of the best fleet by trying all of them; 0: none fits."""
    wishes = case.constraints
    names = [node.name for node in case.cluster.nodes if node.name not in wishes.exclude]
    pinned = {pin.node for pin in wishes.layers}
    speeds: dict[tuple[Group, int], float] = {}

    def speed(group: Group, streams: int) -> float:
        if (group, streams) not in speeds:
            speeds[group, streams] = pipeline_speed(case, group, streams)
        return speeds[group, streams]

    best = 0.0
    for num_used in range(1, len(names) + 1):
        if (wishes.use_all and num_used < len(names)) or (wishes.max_nodes and num_used > wishes.max_nodes):
            continue
        for used in combinations(names, num_used):
            for groups in partitions(used) if pinned <= set(used) else ():
                if max_replicas and len(groups) > max_replicas:
                    continue
                for streams in splits(case.workload.concurrency, len(groups)):
                    each = [speed(*pipeline) for pipeline in zip(groups, streams, strict=True)]
                    best = max(best, sum(each) if all(each) else 0.0)
    return best


def pipeline_speed(case: Case, group: Group, streams: int) -> float:
    nodes = tuple(node for node in case.cluster.nodes if node.name in group)
    wishes = PlanConstraints(layers=tuple(pin for pin in case.constraints.layers if pin.node in group), use_all=True)
    problem = Problem.of(
        case.model,
        msgspec.structs.replace(case.cluster, nodes=nodes),
        msgspec.structs.replace(case.workload, concurrency=streams),
        wishes,
    )
    return 1 / least_cost_s(problem)


def partitions(nodes: Group) -> Iterator[list[Group]]:
    if not nodes:
        yield []
        return
    for count in range(len(nodes)):
        for others in combinations(nodes[1:], count):
            rest = tuple(node for node in nodes[1:] if node not in others)
            for groups in partitions(rest):
                yield [(nodes[0], *others), *groups]


def splits(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in splits(total - first, parts - 1):
            yield (first, *rest)


@given(small_cases, st.sampled_from([0, 0, 2]))
@settings(deadline=None, max_examples=60)
def test_a_fleet_is_as_fast_as_by_trying_all_fleets(case: Case, max_replicas: int) -> None:
    found = try_fleet(case, max_replicas)
    assert (found.predicted_tokens_per_s if found else 0.0) == pytest.approx(fastest(case, max_replicas), rel=EQUAL)
    if found is not None:
        assert found.gap == 0
        assert len(found.pipelines) <= (max_replicas or len(case.cluster.nodes))


@pytest.mark.parametrize("seed", range(4))
def test_four_nodes_are_parted_as_by_trying_all_fleets(seed: int) -> None:
    case = roomy(for_throughput(random_case(seed, 4, 4, "alike", "throughput"), concurrency=4))
    found = plan_replicas(*case)
    assert found.predicted_tokens_per_s == pytest.approx(fastest(case, 0), rel=EQUAL)
    assert found.gap == 0


# ------------------------------------------------------------------------------------- any fleet


@given(larger_cases, st.sampled_from([0, 0, 2, 3]))
@settings(deadline=None, max_examples=30)
def test_a_fleet_keeps_what_was_asked_for(case: Case, max_replicas: int) -> None:
    found = try_fleet(case, max_replicas)
    if found is None:
        return
    wishes, workload = case.constraints, case.workload
    stages = [stage for one in found.pipelines for stage in one.stages]
    used = [stage.worker for stage in stages]
    names = [node.name for node in case.cluster.nodes]
    assert sorted([*used, *found.left_out]) == sorted(names)
    assert sum(one.concurrency for one in found.pipelines) == workload.concurrency
    assert not set(used) & set(wishes.exclude)
    assert len(used) <= (wishes.max_nodes or len(names))
    assert not wishes.use_all or len(used) == len(names) - len(wishes.exclude)
    ranges = {stage.worker: (stage.start, stage.end) for stage in stages}
    assert all(ranges[pin.node] == (pin.start, pin.end) for pin in wishes.layers)
    memory = {node.name: node.memory_bytes for node in case.cluster.nodes}
    context = min(workload.context, case.model.max_context)
    for one in found.pipelines:
        covered = [layer for stage in one.stages for layer in range(stage.start, stage.end)]
        assert covered == list(range(len(case.model.layer_weight_bytes)))
        assert one.kv_capacity_tokens == one.concurrency * context
        assert all(stage.num_bytes <= memory[stage.worker] for stage in one.stages)
    given_s = sum(one.predicted_tokens_per_s for one in found.pipelines)
    assert found.predicted_tokens_per_s == pytest.approx(given_s)
    assert found.bound_tokens_per_s >= found.predicted_tokens_per_s >= found.single_tokens_per_s
    try:
        single = plan(*case).predicted_tokens_per_s
    except InfeasiblePlanError:
        single = 0.0
    assert found.single_tokens_per_s == single


@given(larger_cases)
@settings(deadline=None, max_examples=15)
def test_the_same_question_gives_the_same_bytes(case: Case) -> None:
    assert msgspec.json.encode(try_fleet(case)) == msgspec.json.encode(try_fleet(case))


@given(larger_cases)
@settings(deadline=None, max_examples=25)
def test_bounds_hold_for_what_is_planned(case: Case) -> None:
    asked = question(case)
    speeds = PipelineSpeeds(asked)
    nodes = range(asked.problem.num_nodes)
    streams = case.workload.concurrency
    for count in nodes:
        for group in combinations(nodes, count + 1):
            pipeline = Pipeline(group, streams)
            assert speeds.solved(pipeline) <= speeds.at_most(pipeline)
            assert speeds.solved(pipeline) <= fleet_bound(asked.problem, group, streams)


@given(larger_cases)
@settings(deadline=None, max_examples=40)
def test_a_search_finds_fleets_that_are_allowed_and_no_faster_than_the_best(case: Case) -> None:
    asked = question(case)
    speeds = PipelineSpeeds(asked)
    rules = FleetRules.of(asked, speeds, 0)
    found = search_fleet(speeds, rules, ()) if rules.most_pipelines > 1 else None
    if found is None:
        return
    used = [node for pipeline in found.pipelines for node in pipeline.nodes]
    assert len(set(used)) == len(used)
    assert rules.allows(used)
    assert sum(pipeline.num_streams for pipeline in found.pipelines) == case.workload.concurrency
    assert found.tokens_per_s == pytest.approx(sum(map(speeds.solved, found.pipelines)))
    best = try_fleet(case)
    assert best is not None
    assert found.tokens_per_s <= best.predicted_tokens_per_s * (1 + EQUAL)
