"""Chooses the solver: exact ones while what they have to do is little enough, else a search that reports its gap."""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.partitioning import general, uniform
from butterfly.partitioning.bounds import floors
from butterfly.partitioning.general import GeneralTrips
from butterfly.partitioning.levels import Shortest, cheapest
from butterfly.partitioning.problem import Placement, Problem, Solution
from butterfly.partitioning.search import search
from butterfly.partitioning.uniform import UniformTrips

MAX_GENERAL_WORK = {"latency": 2e8, "throughput": 4e7, "balanced": 4e7}  # additions; latency needs one pass only
MAX_TRIPS = 2000  # a safeguard: exact solvers need a few dozen


def solve(problem: Problem, start: Sequence[Placement] = ()) -> Solution | None:
    """The cheapest placement, or None when none fits.

    Up to about 12 nodes the answer is exact, and `lower_bound_s` is its cost. Beyond that it is as good as a search
    finds, never worse than those of `start` that fit, with a bound that no placement beats; None then means that none
    was found, which is proof only for layers that are alike without pins.
    """
    if problem.min_stages > problem.max_stages:
        return None
    trips = _exact(problem)
    if trips is None:
        return search(problem, start)
    found = cheapest(problem, trips, floors(problem), MAX_TRIPS)
    if found.trip is None or found.trip.placement is None:
        return None
    return Solution(found.trip.placement, found.cost_s, found.lower_bound_s)


def _exact(problem: Problem) -> Shortest | None:
    """The exact solver that is affordable, if one is."""
    if uniform.work(problem) <= uniform.MAX_WORK:
        return UniformTrips(problem).shortest
    if general.work(problem) <= MAX_GENERAL_WORK[problem.objective]:
        return GeneralTrips(problem).shortest
    return None
