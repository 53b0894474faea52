"""From shortest trips to the cheapest placement, for every objective.

A cost grows with a trip's length and with the slowest stage or link. So it is enough to know, for a number of stages
and a ceiling on `slowest_s`, the shortest trip under that ceiling. As the ceiling falls that trip gets longer, in
steps. Where one falls short of being cheapest, its range of ceilings is dropped whole: no placement in the range is
better than (the trip under its top, the floor at its bottom). Other ranges are halved. This is a branch and bound over
one number, so it is exact for any trip solver that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import NamedTuple

from butterfly.partitioning.problem import Placement, Problem

TIE = 1e-12  # relative: what differs by less is equal, rounding does as much


class Trip(NamedTuple):
    trip_s: float
    slowest_s: float
    placement: Placement | None = None  # None: of a relaxed problem, whose trips need not exist


Shortest = Callable[[int, float], Trip | None]
"""(number of stages, ceiling of slowest_s) -> the shortest such trip; None where there is none."""


class Cheapest(NamedTuple):
    trip: Trip | None
    cost_s: float  # infinite without a trip
    lower_bound_s: float  # equal to `cost_s` unless the search was cut short


class _Range(NamedTuple):
    """Placements of so many stages with `slowest_s` between floor and ceiling: none costs less than the bound."""

    bound_s: float
    num_stages: int
    floor_s: float
    ceiling_s: float


def cheapest(
    problem: Problem, shortest: Shortest, floors: Iterable[tuple[int, float]], max_trips: int, enough: float = 0.0
) -> Cheapest:
    """Return the cheapest of all trips that `shortest` answers with.

    `floors` has each allowed number of stages with a lower bound of its `slowest_s`. After `max_trips` questions, or
    when the answer is proven to a fraction of `enough`, the bound of what is left is reported as it is.
    """
    left: list[_Range] = []
    for num_stages, floor_s in floors:  # no trip is shorter than its slowest stage
        heappush(left, _Range(problem.cost(floor_s, floor_s, num_stages), num_stages, floor_s, float("inf")))
    best, best_s = None, float("inf")
    while left and left[0].bound_s < best_s * (1 - max(TIE, enough)) and max_trips > 0:
        part = heappop(left)
        max_trips -= 1
        trip = shortest(part.num_stages, part.ceiling_s)
        if trip is None:
            continue
        cost_s = problem.cost(trip.trip_s, trip.slowest_s, part.num_stages)
        if cost_s < best_s * (1 - TIE) or (cost_s <= best_s * (1 + TIE) and _is_nicer(trip, best)):
            best, best_s = trip, cost_s
        for half in _halves(problem, part, trip):
            if half.bound_s < best_s * (1 - TIE):
                heappush(left, half)
    is_proven = not left or left[0].bound_s >= best_s * (1 - TIE)
    return Cheapest(best, best_s, best_s if is_proven else left[0].bound_s)


def _halves(problem: Problem, part: _Range, trip: Trip) -> tuple[_Range, ...]:
    """What is left of a range once the shortest trip under its ceiling is known: that trip's own level and up are."""
    below_s = trip.slowest_s * (1 - TIE)
    middle_s = (part.floor_s + below_s) / 2
    if middle_s <= part.floor_s * (1 + TIE):
        return ()
    return tuple(
        _Range(problem.cost(trip.trip_s, floor_s, part.num_stages), part.num_stages, floor_s, ceiling_s)
        for floor_s, ceiling_s in ((part.floor_s, middle_s), (middle_s, below_s))
    )


def _is_nicer(trip: Trip, best: Trip | None) -> bool:
    """Of equally cheap placements: fewer stages, then the first by nodes and cuts."""
    if best is None or best.placement is None or trip.placement is None:
        return best is None
    return (len(trip.placement.nodes), *trip.placement) < (len(best.placement.nodes), *best.placement)
