"""For clusters too large to be solved exactly: good orders, made better change by change, and an honest bound.

Whatever is counted is work, never time: the same problem has the same answer on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from butterfly.partitioning.bounds import floors, shortest_alone
from butterfly.partitioning.levels import Trip, cheapest
from butterfly.partitioning.neighbours import neighbours
from butterfly.partitioning.orders import Costs, Cut, Fill
from butterfly.partitioning.problem import Placement, Problem, Solution, best_of
from butterfly.partitioning.relaxed import RelaxedTrips
from butterfly.partitioning.starts import starts
from butterfly.partitioning.subsets import Indices

NUM_DESCENTS = 4  # orders that are made better
FILL_WORK = 20_000_000  # stages that may be looked at
CUT_WORK = 120_000
CUT_TRIES = 8  # neighbours that are cut exactly in each change, where layers differ
ORDER_TRIPS = 200  # ceilings tried for the cuts of a final order
BOUND_TRIPS = 220
BOUND_ENOUGH = 0.02  # a fraction of the bound
GAIN = 1e-9  # relative: the least that is worth a change


class _Candidate(NamedTuple):
    cost_s: float
    order: tuple[int, ...]
    level_s: float


def search(problem: Problem, start: Sequence[Placement] = ()) -> Solution | None:
    """A placement that no small change makes cheaper, and a lower bound; None when none was found that fits.

    With layers that are alike and no pins, None means that none fits.
    """
    hunt = _Hunt(problem)
    given = [placement for placement in start if problem.fits(placement)]
    alone = [] if problem.min_stages > 1 else [shortest_alone(problem, float("inf"))]
    given += [trip.placement for trip in alone if trip is not None and trip.placement is not None]
    found = hunt.best_starts([placement.nodes for placement in given])
    better = [hunt.improve(candidate) for candidate in found]
    cut = [hunt.cut(candidate.order) for candidate in better]
    placements = [*given, *(placement for placement in cut if placement is not None and problem.fits(placement))]
    if not placements:
        return None
    placement = best_of(problem, placements)
    cost_s = problem.evaluate(placement).cost_s
    bound = cheapest(problem, RelaxedTrips(problem).shortest, floors(problem), BOUND_TRIPS, BOUND_ENOUGH)
    return Solution(placement, cost_s, min(cost_s, bound.lower_bound_s))


class _Hunt:
    """A search with a budget of work."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._fill, self._cut = Fill(problem), Cut(problem)
        self._is_exact = problem.is_uniform and not problem.pins

    def best_starts(self, given: Sequence[tuple[int, ...]]) -> list[_Candidate]:
        """The best of the given orders first, then the best ones with different numbers of stages."""
        groups = list(starts(self._problem, self._fill.room))
        own = [one for one in (self._best(group, None) for group in groups) if one is not None]
        if not own and not self._is_exact:
            own = [one for one in map(self._shortest, groups) if one is not None][:1]
        by_stages: dict[int, _Candidate] = {}
        for candidate in sorted(own):
            by_stages.setdefault(len(candidate.order), candidate)
        begun = [self._best(numpy.array([order], dtype=numpy.intp), None) for order in given]
        best_begun = sorted(one for one in begun if one is not None)[:1]
        return [*dict.fromkeys([*best_begun, *by_stages.values()])][:NUM_DESCENTS]

    def improve(self, candidate: _Candidate) -> _Candidate:
        """Make the change that gains most, until none gains or the budget is spent."""
        while self._fill.work < FILL_WORK and self._cut.work < CUT_WORK:
            groups = neighbours(self._problem, candidate.order)
            changed = [self._best(group, candidate.level_s) for group in groups]
            best = min((one for one in changed if one is not None), default=candidate)
            if best.cost_s >= candidate.cost_s * (1 - GAIN):
                break
            candidate = best
        return candidate

    def cut(self, order: tuple[int, ...]) -> Placement | None:
        """The cheapest placement with the stages on these nodes in this order, exactly."""
        problem, num_stages = self._problem, len(order)
        hops = list(order[:-1]), list(order[1:])
        occupied_s = float(problem.costs(num_stages).occupied_s[hops].max(initial=0.0))

        def shortest(num_stages: int, ceiling_s: float) -> Trip | None:
            placement = self._cut.cuts.placement(order, ceiling_s)
            if placement is None:
                return None
            score = problem.evaluate(placement)
            return Trip(score.trip_s, score.slowest_s, placement)

        best = cheapest(problem, shortest, [(num_stages, occupied_s)], ORDER_TRIPS).trip
        return best.placement if best is not None else None

    def _best(self, orders: Indices, near_s: float | None) -> _Candidate | None:
        """The cheapest of these orders; None when none of them fits."""
        costs = self._fill.costs(orders, near_s)
        tries = numpy.argsort(costs.cost_s, kind="stable")[:CUT_TRIES]
        tries = tries[numpy.isfinite(costs.cost_s[tries])]
        if not len(tries):
            return None
        orders = orders[tries]
        costs = Costs(costs.cost_s[tries], costs.level_s[tries])
        if not self._is_exact:
            costs = self._cut.costs(orders, costs.level_s)
        elif near_s is not None:
            costs = self._fill.costs(orders)
        chosen = int(costs.cost_s.argmin())
        if not numpy.isfinite(costs.cost_s[chosen]):
            return None
        return _Candidate(float(costs.cost_s[chosen]), tuple(orders[chosen].tolist()), float(costs.level_s[chosen]))

    def _shortest(self, orders: Indices) -> _Candidate | None:
        """The order with the shortest trip, if any of them fits: for when the estimate finds none."""
        ceilings_s = numpy.full(len(orders), numpy.inf)
        trips_s = self._cut.cuts.trips_s(orders, ceilings_s)
        order = tuple(orders[int(trips_s.argmin())].tolist())
        placement = self._cut.cuts.placement(order, float("inf"))
        if placement is None:
            return None
        score = self._problem.evaluate(placement)
        return _Candidate(score.cost_s, order, score.slowest_s)
