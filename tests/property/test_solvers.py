"""The planner's solvers against every placement there is, against each other, and against common sense."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.partitioning.bounds import floors
from butterfly.partitioning.general import GeneralTrips
from butterfly.partitioning.levels import Cheapest, Shortest, cheapest
from butterfly.partitioning.problem import Problem
from butterfly.partitioning.solve import solve
from butterfly.partitioning.uniform import UniformTrips
from butterfly.specs import ComputeProfile, LayerProfile, NodeSpec, Objective, TimeTable
from tests.support.problems import Case, any_cases, cases, least_cost_s, random_case

EQUAL = 1e-9  # relative
MANY_TRIPS = 10_000


def solved(problem: Problem, shortest: Shortest) -> Cheapest:
    """By a certain exact solver, checked for itself."""
    found = cheapest(problem, shortest, floors(problem), MANY_TRIPS)
    assert found.lower_bound_s == found.cost_s
    if found.trip is not None:
        assert found.trip.placement is not None
        assert problem.fits(found.trip.placement)
        assert problem.evaluate(found.trip.placement).cost_s == found.cost_s
    return found


def solved_cost_s(case: Case) -> float:
    """By the solver that is chosen, checked for itself; infinite when nothing fits."""
    problem = case.problem()
    found = solve(problem)
    if found is None:
        return float("inf")
    assert problem.fits(found.placement)
    assert found.cost_s == found.lower_bound_s == problem.evaluate(found.placement).cost_s
    return found.cost_s


@given(cases("alike"))
@settings(deadline=None, max_examples=600)
def test_layers_that_are_alike_are_placed_as_by_trying_all_placements(case: Case) -> None:
    assert solved_cost_s(case) == pytest.approx(least_cost_s(case.problem()), rel=EQUAL)


@given(cases("different", most_layers=6))
@settings(deadline=None, max_examples=450)
def test_layers_that_differ_are_placed_as_by_trying_all_placements(case: Case) -> None:
    assert solved_cost_s(case) == pytest.approx(least_cost_s(case.problem()), rel=EQUAL)


@given(any_cases(constrained=True))
@settings(deadline=None, max_examples=600)
def test_constraints_are_kept_at_the_least_cost(case: Case) -> None:
    assert solved_cost_s(case) == pytest.approx(least_cost_s(case.problem()), rel=EQUAL)


@given(cases("alike", most_nodes=3, most_layers=6))
@settings(deadline=None, max_examples=200)
def test_the_general_solver_needs_no_difference_of_layers(case: Case) -> None:
    problem = case.problem()
    assert solved(problem, GeneralTrips(problem).shortest).cost_s == pytest.approx(least_cost_s(problem), rel=EQUAL)


@pytest.mark.parametrize("objective", ["latency", "throughput", "balanced"])
@pytest.mark.parametrize("seed", range(4))
def test_both_exact_solvers_agree_on_larger_problems(objective: Objective, seed: int) -> None:
    problem = random_case(seed, num_nodes=6, num_layers=16, layers="alike", objective=objective).problem()
    by_count = solved(problem, UniformTrips(problem).shortest)
    by_cuts = solved(problem, GeneralTrips(problem).shortest)
    assert by_count.cost_s == pytest.approx(by_cuts.cost_s, rel=EQUAL)


@given(st.data(), any_cases())
@settings(deadline=None, max_examples=80)
def test_more_memory_a_faster_node_or_another_node_never_costs_more(data: st.DataObject, case: Case) -> None:
    cost_s = solved_cost_s(case)
    nodes = case.cluster.nodes
    chosen = data.draw(st.integers(0, len(nodes) - 1))
    node = nodes[chosen]
    factor = data.draw(st.sampled_from([1.1, 2.0, 10.0]))
    roomier = msgspec.structs.replace(node, memory_bytes=int(node.memory_bytes * factor))
    other = data.draw(st.sampled_from(nodes))
    extra = msgspec.structs.replace(other, name="extra")
    faster = _faster(node, factor)
    for better in ((*nodes[:chosen], roomier, *nodes[chosen + 1 :]), (*nodes[:chosen], faster, *nodes[chosen + 1 :])):
        assert solved_cost_s(case.with_nodes(*better)) <= cost_s * (1 + EQUAL)
    assert solved_cost_s(case.with_nodes(*nodes, extra)) <= cost_s * (1 + EQUAL)


def _faster(node: NodeSpec, factor: float) -> NodeSpec:
    """All its times are shorter by the factor."""
    profile = node.profile and ComputeProfile(
        layers=tuple(
            LayerProfile(decode=_shorter(layer.decode, factor), prefill=_shorter(layer.prefill, factor))
            for layer in node.profile.layers
        ),
        head=_shorter(node.profile.head, factor),
        step_s=node.profile.step_s / factor,
    )
    return msgspec.structs.replace(
        node,
        memory_bandwidth_bytes_per_s=node.memory_bandwidth_bytes_per_s * factor,
        flops_per_s=node.flops_per_s * factor,
        profile=profile,
    )


def _shorter(table: TimeTable, factor: float) -> TimeTable:
    seconds = tuple(tuple(value / factor for value in row) for row in table.seconds)
    return msgspec.structs.replace(table, seconds=seconds)
