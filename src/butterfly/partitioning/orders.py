"""What orders of nodes cost, many at a time: for searches that change an order little by little.

`Fill` takes every layer for an average one: exact where layers are alike and none is pinned, else an estimate that
says which orders are worth cutting exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy

from butterfly.partitioning.cuts import Cuts
from butterfly.partitioning.objective import Array, cost
from butterfly.partitioning.problem import Problem
from butterfly.partitioning.subsets import Indices
from butterfly.partitioning.uniform import layers_in_memory, layers_in_time

LEVELS = 5  # ceilings that are tried at once, between the lowest and the highest
ROUNDS = 3  # of trying, each between the neighbours of the last one's best
NEAR_LEVELS = numpy.array([0.7, 0.85, 0.95, 1 + 1e-9, 1.15])  # ceilings tried around that of a similar order
CUT_LEVELS = numpy.array([0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.4, 2.0, 4.0])  # and around that of an estimate


class Costs(NamedTuple):
    cost_s: Array  # [order]; infinite: it does not fit
    level_s: Array  # [order]: its slowest stage or link


class Fill:
    """Layer counts for orders that are given: the fastest nodes get most."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.work = 0  # stages looked at so far
        by_role = [layers_in_memory(problem, is_first=f, is_last=last) for last in (False, True) for f in (False, True)]
        self.room = numpy.stack(by_role)  # [2 * is last + is first, node] layers
        self._least = numpy.ones(problem.num_nodes, dtype=numpy.int64)
        for node, (start, end) in problem.pins.items():
            self._least[node] = end - start
            self.room[:, node] = numpy.minimum(self.room[:, node], end - start)

    def costs(self, orders: Indices, near_s: float | None = None) -> Costs:
        """Of orders [order, stage], with the best ceiling for each; with `near_s`, one near that only."""
        problem, num_stages = self.problem, orders.shape[1]
        trips_s, level_s = self._trips(orders, numpy.full((1, len(orders)), numpy.inf))
        best = Costs(self._cost(trips_s, level_s, num_stages)[0], level_s[0])
        if problem.objective == "latency":
            return best
        if near_s is not None:
            ceilings_s = near_s * NEAR_LEVELS[:, None].repeat(len(orders), axis=1)
            return self._better(orders, ceilings_s, best)[0]
        batch = problem.costs(num_stages)
        layer_s, step_s = numpy.maximum(batch.layer_s.mean(axis=1), 1e-15)[orders], batch.step_s[orders]
        low_s = (problem.num_layers + (step_s / layer_s).sum(axis=1)) / (1 / layer_s).sum(axis=1)
        high_s = numpy.where(numpy.isinf(best.cost_s), low_s, numpy.maximum(best.level_s, low_s))
        for _ in range(ROUNDS):
            shares = numpy.arange(1, LEVELS + 1)[:, None] / (LEVELS + 1)
            ceilings_s = low_s + (high_s - low_s) * shares
            best, chosen = self._better(orders, ceilings_s, best)
            around_s = numpy.concatenate([low_s[None], ceilings_s, high_s[None]])
            low_s = numpy.take_along_axis(around_s, chosen[None], axis=0)[0]
            high_s = numpy.take_along_axis(around_s, chosen[None] + 2, axis=0)[0]
        return best

    def _better(self, orders: Indices, ceilings_s: Array, best: Costs) -> tuple[Costs, Indices]:
        """The best of what was known and these ceilings [level, order], and which of these levels was best.

        Where none of these has room, that is the last: what has room is above it.
        """
        trips_s, level_s = self._trips(orders, ceilings_s)
        cost_s = self._cost(trips_s, level_s, orders.shape[1])
        chosen = numpy.where(numpy.isinf(cost_s).all(axis=0), len(ceilings_s) - 1, cost_s.argmin(axis=0))
        found_s = numpy.take_along_axis(cost_s, chosen[None], axis=0)[0]
        at_s = numpy.take_along_axis(level_s, chosen[None], axis=0)[0]
        is_better = found_s < best.cost_s
        improved = numpy.where(is_better, found_s, best.cost_s), numpy.where(is_better, at_s, best.level_s)
        return Costs(*improved), chosen

    def _cost(self, trips_s: Array, level_s: Array, num_stages: int) -> Array:
        return cost(self.problem.objective, trips_s, level_s, num_stages, self.problem.concurrency)

    def _trips(self, orders: Indices, ceilings_s: Array) -> tuple[Array, Array]:
        """[level, order] seconds of the trip, infinite where there is no room, and of the slowest stage or link."""
        problem, num_stages = self.problem, orders.shape[1]
        self.work += orders.size * len(ceilings_s)
        batch = problem.costs(num_stages)
        average_s, role = batch.layer_s.mean(axis=1), numpy.zeros(num_stages, dtype=numpy.intp)
        role[0] += 1
        role[-1] += 2
        by_speed = numpy.argsort(average_s[orders], axis=1, kind="stable")
        nodes = numpy.take_along_axis(orders, by_speed, axis=1)  # [order, stage], the fastest first
        layer_s, least = average_s[nodes], self._least[nodes]
        beside_s = batch.step_s[nodes] + (by_speed == num_stages - 1) * batch.head_s[nodes]
        in_time = layers_in_time(ceilings_s[:, :, None] - beside_s, layer_s, problem.num_layers)
        more = numpy.minimum(self.room[role[by_speed], nodes], in_time) - least
        spare = problem.num_layers - least.sum(axis=1)
        filled = numpy.minimum(numpy.cumsum(more, axis=2), spare[:, None])
        counts = least + numpy.diff(filled, axis=2, prepend=0)
        stages_s = beside_s + counts * layer_s
        hops = orders[:, :-1], orders[:, 1:]
        trips_s = stages_s.sum(axis=2) + batch.hop_s[hops].sum(axis=1)
        trips_s += batch.out_s[orders[:, 0]] + batch.back_s[orders[:, -1]]
        has_room = (more.min(axis=2) >= 0) & (spare >= 0) & (filled[:, :, -1] == spare)
        level_s = numpy.maximum(stages_s.max(axis=2), batch.occupied_s[hops].max(axis=1, initial=0.0))
        return numpy.where(has_room, trips_s, numpy.inf), level_s


class Cut:
    """The same orders, cut exactly at ceilings around the estimate's: an upper bound of what they cost."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.cuts = Cuts(problem)
        self.work = 0  # stages looked at so far

    def costs(self, orders: Indices, near_s: Array) -> Costs:
        """Of orders [order, stage] near the levels [order]."""
        problem, num_stages = self._problem, orders.shape[1]
        ceilings_s = near_s * CUT_LEVELS[:, None]
        if problem.objective == "latency":
            ceilings_s = numpy.full((1, len(orders)), numpy.inf)
        self.work += orders.size * len(ceilings_s)
        trips_s = self.cuts.trips_s(numpy.tile(orders, (len(ceilings_s), 1)), ceilings_s.ravel())
        occupied_s = problem.costs(num_stages).occupied_s[orders[:, :-1], orders[:, 1:]].max(axis=1, initial=0.0)
        level_s = numpy.maximum(ceilings_s, occupied_s)
        trips_s = trips_s.reshape(ceilings_s.shape)
        cost_s = cost(problem.objective, trips_s, level_s, num_stages, problem.concurrency)
        chosen = cost_s.argmin(axis=0)[None]
        return Costs(numpy.take_along_axis(cost_s, chosen, 0)[0], numpy.take_along_axis(level_s, chosen, 0)[0])
