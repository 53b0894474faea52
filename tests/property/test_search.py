"""The planner's search, for clusters too large to be solved exactly: honest bounds, no nonsense, no chance."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.partitioning.general import GeneralTrips
from butterfly.partitioning.problem import Placement
from butterfly.partitioning.relaxed import RelaxedTrips
from butterfly.partitioning.search import search
from butterfly.partitioning.solve import solve
from butterfly.specs import Objective
from tests.support.problems import Case, Layers, any_cases, cases, random_case

EQUAL = 1e-9  # relative


@given(any_cases(constrained=True) | any_cases(most_nodes=6, most_layers=8))
@settings(deadline=None, max_examples=100)
def test_the_optimum_is_between_bound_and_cost(case: Case) -> None:
    problem = case.problem()
    best, found = solve(problem), search(problem)
    if found is None:
        return
    assert best is not None
    assert problem.fits(found.placement)
    assert found.cost_s == problem.evaluate(found.placement).cost_s
    assert found.lower_bound_s <= best.cost_s * (1 + EQUAL)
    assert best.cost_s <= found.cost_s * (1 + EQUAL)


@given(any_cases(most_nodes=5, most_layers=6) | any_cases(constrained=True), st.floats(0.05, 1.2))
@settings(deadline=None, max_examples=200)
def test_no_trip_is_shorter_than_the_relaxed_one(case: Case, share: float) -> None:
    """For any number of stages, under any ceiling."""
    problem = case.problem()
    exact, relaxed = GeneralTrips(problem), RelaxedTrips(problem)
    for num_stages in range(problem.min_stages, problem.max_stages + 1):
        ceiling_s = float("inf")
        for _ in range(3):
            trip, bound = exact.shortest(num_stages, ceiling_s), relaxed.shortest(num_stages, ceiling_s)
            if trip is None:
                break
            assert bound is not None
            assert bound.trip_s <= trip.trip_s * (1 + EQUAL)
            ceiling_s = trip.slowest_s * share


@given(cases("alike", most_nodes=6, most_layers=8))
@settings(deadline=None, max_examples=50)
def test_with_layers_that_are_alike_whatever_fits_is_found(case: Case) -> None:
    problem = case.problem()
    assert (search(problem) is None) == (solve(problem) is None)


@pytest.mark.parametrize("objective", ["latency", "throughput", "balanced"])
def test_most_small_problems_are_searched_to_the_optimum(objective: Objective) -> None:
    ratios = []
    for seed in range(14):
        problem = random_case(seed, num_nodes=6, num_layers=16, layers="alike", objective=objective).problem()
        best, found = solve(problem), search(problem)
        assert (best is None) == (found is None)
        if best is not None and found is not None:
            ratios.append(found.cost_s / best.cost_s)
    assert len(ratios) >= 7
    assert sum(ratio < 1.001 for ratio in ratios) >= 0.8 * len(ratios)


@pytest.mark.parametrize("layers", ["alike", "different"])
@pytest.mark.parametrize("objective", ["latency", "throughput", "balanced"])
def test_a_large_cluster_is_no_slower_than_its_best_node_and_planned_the_same_twice(
    objective: Objective, layers: Layers
) -> None:
    case = random_case(3, num_nodes=20, num_layers=12, layers=layers, objective=objective)
    large = [msgspec.structs.replace(node, memory_bytes=40 * node.memory_bytes) for node in case.cluster.nodes[::4]]
    case = case.with_nodes(
        *case.cluster.nodes, *(msgspec.structs.replace(node, name=node.name + "+") for node in large)
    )
    problem = case.problem()
    found = solve(problem)
    assert found is not None
    assert problem.fits(found.placement)
    assert found.lower_bound_s <= found.cost_s
    alone = [Placement((node,), (problem.num_layers,)) for node in range(problem.num_nodes)]
    costs_s = [problem.evaluate(placement).cost_s for placement in alone if problem.fits(placement)]
    assert costs_s  # else the next line tests nothing
    assert found.cost_s <= min(costs_s)
    assert solve(case.problem()) == found


def test_it_is_never_worse_than_what_it_is_given() -> None:
    case = random_case(5, num_nodes=20, num_layers=12, layers="different", objective="throughput")
    problem = case.problem()
    found = search(problem)
    assert found is not None
    assert search(problem, (found.placement,)) == found
