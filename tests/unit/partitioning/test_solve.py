"""What the solvers decide in cases that can be checked by looking, and the parts that they are made of."""

from __future__ import annotations

from itertools import permutations
from random import Random

import numpy
import pytest

from butterfly.partitioning import general, uniform
from butterfly.partitioning.bounds import floors, least_slowest_s
from butterfly.partitioning.cuts import num_below, window_min
from butterfly.partitioning.levels import Trip, cheapest
from butterfly.partitioning.neighbours import neighbours
from butterfly.partitioning.problem import Placement, Problem
from butterfly.partitioning.relaxed import RelaxedTrips
from butterfly.partitioning.solve import MAX_GENERAL_WORK, solve
from butterfly.partitioning.subsets import Subsets, Ways
from butterfly.partitioning.uniform import UniformTrips
from butterfly.specs import (
    ClusterSpec,
    LayerPin,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    Objective,
    PlanConstraints,
    WorkloadSpec,
)

SLOW, FAST = 1_000.0, 4_000.0  # bytes/s: a layer takes 0.1 s, or 0.025 s
PLENTY = 10_000


def node(name: str, memory_bytes: int = PLENTY, speed: float = SLOW) -> NodeSpec:
    return NodeSpec(name=name, memory_bytes=memory_bytes, memory_bandwidth_bytes_per_s=speed)


def problem(
    *nodes: NodeSpec,
    num_layers: int = 8,
    objective: Objective = "latency",
    links: tuple[LinkSpec, ...] = (),
    constraints: PlanConstraints = PlanConstraints(),  # noqa: B008 - frozen
    embedding_bytes: int = 0,
    odd_layer_bytes: int = 100,
    concurrency: int = 4,
) -> Problem:
    """Layers of 100 bytes, no KV cache."""
    model = ModelFootprint(
        layer_weight_bytes=tuple(odd_layer_bytes if i % 2 else 100 for i in range(num_layers)),
        embedding_bytes=embedding_bytes,
        head_bytes=0,
        kv_bytes_per_token=(0,) * num_layers,
        max_context=64,
        hidden_bytes_per_token=100,
    )
    workload = WorkloadSpec(concurrency=concurrency, context=16, objective=objective)
    return Problem.of(model, ClusterSpec(nodes=nodes, links=links), workload, constraints)


def placed(asked: Problem) -> dict[str, int]:
    """Layers of each stage's node, in the order of the stages; the answer must be proven."""
    found = solve(asked)
    assert found is not None
    assert found.lower_bound_s == found.cost_s
    return {asked.names[number]: end - start for number, start, end in found.placement.ranges()}


def test_one_token_is_quickest_on_the_fastest_node_alone() -> None:
    assert placed(problem(node("a"), node("b", speed=FAST), node("c"))) == {"b": 8}


def test_many_streams_are_spread_by_speed() -> None:
    """So many that arithmetic binds: a stage's time is its layers' times the tokens of a batch."""
    asked = problem(node("a"), node("b", speed=FAST), objective="throughput", concurrency=640)
    assert sorted(placed(asked).items()) == [("a", 1), ("b", 7)]


def test_what_does_not_fit_on_the_fastest_goes_to_the_next_fastest() -> None:
    nodes = node("a"), node("b", 350, speed=FAST), node("c", speed=2 * SLOW)
    assert sorted(placed(problem(*nodes)).items()) == [("b", 3), ("c", 5)]


def test_a_far_node_is_left_out_unless_it_is_needed() -> None:
    def far(memory_bytes: int) -> Problem:
        links = [LinkSpec(source=a, target="b", latency_s=9.0, bandwidth_bytes_per_s=1e9) for a in ("a", "coordinator")]
        return problem(node("a", memory_bytes), node("b", speed=FAST), links=tuple(links))

    assert placed(far(800)) == {"a": 8}
    assert placed(far(700)) == {"b": 8}
    assert placed(problem(node("a", 700), node("b", 700))) in ({"a": 7, "b": 1}, {"a": 1, "b": 7})


def test_a_link_that_is_busy_for_longer_than_any_stage_is_avoided_for_many_streams() -> None:
    """a to b takes 1 s for a token's hidden state and stages take less; by way of c all links are fast."""
    slow = (LinkSpec(source="a", target="b", latency_s=0.0, bandwidth_bytes_per_s=100.0),)
    nodes = node("a", 300), node("b", 300), node("c", 300)
    order = list(placed(problem(*nodes, objective="throughput", links=slow)))
    assert order in (["a", "c", "b"], ["b", "c", "a"])


def test_the_embedding_decides_who_is_first() -> None:
    assert placed(problem(node("a", 300), node("b", 580), embedding_bytes=60)) == {"b": 5, "a": 3}
    assert placed(problem(node("a", 360), node("b", 500), embedding_bytes=60)) == {"a": 3, "b": 5}


def test_pinned_layers_stay_where_they_are_told() -> None:
    pins = PlanConstraints(layers=(LayerPin(node="c", start=2, end=5),))
    assert placed(problem(node("a", 300), node("b", 300), node("c"), constraints=pins)) in (
        {"a": 2, "c": 3, "b": 3},
        {"b": 2, "c": 3, "a": 3},
    )


def test_all_nodes_are_used_when_that_is_asked() -> None:
    counts = placed(problem(node("a"), node("b", speed=FAST), constraints=PlanConstraints(use_all=True)))
    assert sorted(counts.items()) == [("a", 1), ("b", 7)]


@pytest.mark.parametrize("odd_layer_bytes", [100, 150])
@pytest.mark.parametrize("num_nodes", [1, 3, 40])
def test_what_fits_nowhere_has_no_solution(num_nodes: int, odd_layer_bytes: int) -> None:
    nodes = [node(f"n{i}", memory_bytes=99) for i in range(num_nodes)]
    assert solve(problem(*nodes, odd_layer_bytes=odd_layer_bytes)) is None


def test_more_stages_than_layers_cannot_all_be_used() -> None:
    assert solve(problem(node("a"), node("b"), num_layers=1, constraints=PlanConstraints(use_all=True))) is None


def test_equal_nodes_are_used_in_their_order() -> None:
    found = solve(problem(*(node(f"n{i}", 400) for i in range(5))))
    assert found is not None
    assert found.placement == Placement((0, 1), (4, 8))


def test_ten_nodes_and_eighty_layers_are_solved_exactly_and_sixty_four_nodes_are_not() -> None:
    objectives: tuple[Objective, ...] = ("latency", "throughput", "balanced")
    for objective in objectives:
        ten = problem(*(node(f"n{i}") for i in range(10)), num_layers=80, objective=objective)
        many = problem(*(node(f"n{i}") for i in range(64)), num_layers=80, objective=objective)
        assert uniform.work(ten) <= uniform.MAX_WORK < uniform.work(many)
        assert general.work(ten) <= MAX_GENERAL_WORK[objective] < general.work(many)


def test_two_of_many_nodes_are_still_chosen_exactly() -> None:
    nodes = [node(f"n{i}", 400, speed=SLOW + i) for i in range(40)]
    counts = placed(problem(*nodes, constraints=PlanConstraints(max_nodes=2)))
    assert sorted(counts.items()) == [("n38", 4), ("n39", 4)]


# ---------------------------------------------------------------------------------------------- parts


def test_a_search_cut_short_reports_the_bound_of_what_is_left() -> None:
    asked = problem(*(node(f"n{i}", 300 + 50 * i, SLOW + 700 * i) for i in range(4)), objective="balanced")
    trips = UniformTrips(asked)
    whole = cheapest(asked, trips.shortest, floors(asked), 10_000)
    bounds = [cheapest(asked, trips.shortest, floors(asked), most).lower_bound_s for most in range(30)]
    assert bounds[0] < whole.cost_s
    assert bounds[-1] == whole.cost_s == whole.lower_bound_s
    assert bounds == sorted(bounds)


def test_of_equal_costs_the_one_with_fewer_stages_is_taken() -> None:
    """Trips that all take a second, found in the order of their lower bounds."""
    asked = problem(node("a"), node("b"))

    def shortest(num_stages: int, ceiling_s: float) -> Trip:
        return Trip(1.0, 0.5, Placement(tuple(range(num_stages)), tuple(range(1, num_stages + 1))))

    found = cheapest(asked, shortest, [(1, 0.2), (2, 0.1)], 10).trip
    assert found is not None
    assert found.placement == Placement((0,), (1,))


def test_no_stage_can_be_below_the_least_slowest() -> None:
    """A slow node takes one layer in the time in which the fast one takes four."""
    asked = problem(node("a"), node("b", speed=FAST), num_layers=10, objective="throughput")
    assert least_slowest_s(asked, 2) == pytest.approx(float(asked.costs(2).layer_s[1, 0]) * 8, rel=1e-9)
    assert least_slowest_s(asked, 1) == pytest.approx(float(asked.costs(1).layer_s[1, 0]) * 10, rel=1e-9)


def test_cheapest_ways_are_those_of_all_permutations() -> None:
    random = numpy.random.default_rng(1)
    hop_s = random.random((5, 5))
    hop_s[numpy.diag_indices(5)] = numpy.inf
    subsets = Subsets(5, 5)
    ways = Ways(subsets, hop_s, 5)
    for row, members in enumerate(subsets.members[4].tolist()):
        for first, last in permutations(members, 2):
            between = [order for order in permutations(members) if (order[0], order[-1]) == (first, last)]
            lengths = [float(hop_s[list(order[:-1]), list(order[1:])].sum()) for order in between]
            assert ways.seconds[4][first, last, row] == pytest.approx(min(lengths))
            assert ways.order(row, 4, first, last) == between[lengths.index(min(lengths))]


def test_minima_over_windows_are_those_of_slices() -> None:
    random = Random(2)
    values = numpy.array([[random.random() for _ in range(13)] for _ in range(3)])
    lows = numpy.array([[random.randint(0, 14) for _ in range(13)] for _ in range(3)])
    highs = numpy.array([[random.randint(0, 13) for _ in range(13)] for _ in range(3)])
    for row in range(3):
        for place in range(13):
            window = values[row, lows[row, place] : highs[row, place]]
            assert window_min(values, lows, highs)[row, place] == window.min(initial=numpy.inf)


def test_values_below_limits_are_counted() -> None:
    values = numpy.array([[0.0, 1.0, 1.0, 2.0, 5.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    limits = numpy.array([[1.0, 1.5, -numpy.inf, numpy.inf], [3.0, 3.1, 0.0, 9.0]])
    assert num_below(values, limits).tolist() == [[1, 3, 0, 5], [0, 5, 0, 5]]


def test_two_sites_that_must_both_be_used_pay_for_the_way_between_them() -> None:
    """Hops take 1 ms inside a site and 50 ms between them: the bound knows of one such hop, without knowing the way."""
    names = ["a", "b", "c", "d", "coordinator"]
    links = [
        LinkSpec(source=a, target=b, latency_s=latency_s, bandwidth_bytes_per_s=1e9, software_s=0.0)
        for a, b in permutations(names, 2)
        for latency_s in [0.05 if (a in "cd") != (b in "cd") else 0.001]
    ]
    asked = problem(*(node(name, 200) for name in "abcd"), links=tuple(links))
    bound, best = RelaxedTrips(asked).shortest(4, float("inf")), solve(asked)
    assert bound is not None
    assert best is not None
    assert best.cost_s == pytest.approx(0.8 + 0.001 * 3 + 0.05 * 2, rel=1e-6)
    assert bound.trip_s == pytest.approx(0.8 + 0.001 * 4 + 0.05, rel=1e-6)


def test_neighbours_differ_from_the_order_and_keep_the_pinned_nodes_in_theirs() -> None:
    pins = PlanConstraints(layers=(LayerPin(node="a", start=0, end=2), LayerPin(node="c", start=5, end=6)))
    asked = problem(*(node(name) for name in "abcd"), constraints=pins)
    found = [tuple(order) for group in neighbours(asked, (0, 1, 2)) for order in group.tolist()]
    assert (0, 2) in found
    assert (0, 3, 2) in found
    assert (0, 3, 1, 2) in found
    assert (0, 1, 2) not in found
    assert all(order.index(0) < order.index(2) for order in found)
    assert all(len(set(order)) == len(order) for order in found)
