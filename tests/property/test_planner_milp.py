"""The planner's solvers against a mixed-integer programme, solved by HiGHS, on problems too large for brute force."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import highspy
import pytest

from butterfly.partitioning.problem import Problem
from butterfly.partitioning.solve import solve
from butterfly.specs import Objective
from tests.support.problems import random_case

CLOSE = 1e-6  # relative
NUM_NODES, NUM_LAYERS = 5, 12


class Programme:
    """Pipelines of a certain number of stages: who is used, first, last, next to whom, and holds how many layers."""

    def __init__(self, problem: Problem, num_stages: int) -> None:
        self.problem, self.num_stages = problem, num_stages
        self.batch = problem.costs(num_stages)
        self.solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (("output_flag", False), ("threads", 1), ("mip_rel_gap", 0.0), ("mip_abs_gap", 0.0)):
            self.solver.setOptionValue(option, value)
        nodes = range(problem.num_nodes)
        self.used, self.first, self.last = ([self.solver.addBinary() for _ in nodes] for _ in range(3))
        self.count = [self.solver.addIntegral(0, problem.num_layers) for _ in nodes]
        self.arc = {pair: self.solver.addBinary() for pair in permutations(nodes, 2)}
        self._add_way()
        self._add_memory()

    def least_cost_s(self) -> float:
        """The objective's, infinite when nothing fits."""
        stages = self._stages_s()
        trip = self._sum(stages) + self._sum(self.batch.hop_s[pair] * arc for pair, arc in self.arc.items())
        trip += self._sum(a * b for a, b in zip(self.batch.out_s.tolist(), self.first, strict=True))
        trip += self._sum(a * b for a, b in zip(self.batch.back_s.tolist(), self.last, strict=True))
        goal = self._goal(trip, stages)
        self.solver.minimize(goal)
        if self.solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return float("inf")
        return float(self.solver.getObjectiveValue())

    def _goal(self, trip: Any, stages: list[Any]) -> Any:
        """The cost as a linear expression, written down anew from what `objective` says."""
        if self.problem.objective == "latency":
            return trip
        slowest, longest = (self.solver.addVariable(0, highspy.kHighsInf) for _ in range(2))
        for stage in stages:
            self.solver.addConstr(slowest >= stage)
        for pair, arc in self.arc.items():
            self.solver.addConstr(slowest >= self.batch.occupied_s[pair] * arc)
        turns = min(self.num_stages, self.problem.concurrency)
        if self.problem.objective == "balanced":
            return 0.5 * trip + (turns / 2) * slowest
        self.solver.addConstr(longest >= trip)
        self.solver.addConstr(longest >= turns * slowest)
        return (1 / self.problem.concurrency) * longest

    def _stages_s(self) -> list[Any]:
        batch = self.batch
        return [
            float(batch.layer_s[i, 0]) * self.count[i]
            + float(batch.step_s[i]) * self.used[i]
            + float(batch.head_s[i]) * self.last[i]
            for i in range(self.problem.num_nodes)
        ]

    def _add_way(self) -> None:
        solver, nodes = self.solver, range(self.problem.num_nodes)
        place = [solver.addVariable(0, self.num_stages) for _ in nodes]
        solver.addConstr(self._sum(self.first) == 1)
        solver.addConstr(self._sum(self.last) == 1)
        solver.addConstr(self._sum(self.used) == self.num_stages)
        solver.addConstr(self._sum(self.count) == self.problem.num_layers)
        for i in nodes:
            others = [j for j in nodes if j != i]
            solver.addConstr(self.first[i] + self._sum(self.arc[j, i] for j in others) == self.used[i])
            solver.addConstr(self.last[i] + self._sum(self.arc[i, j] for j in others) == self.used[i])
            solver.addConstr(self.count[i] >= self.used[i])
            solver.addConstr(self.count[i] <= self.problem.num_layers * self.used[i])
        for (i, j), arc in self.arc.items():  # no rings: Miller, Tucker and Zemlin
            solver.addConstr(place[j] >= place[i] + 1 - (self.num_stages + 1) * (1 - arc))

    def _add_memory(self) -> None:
        problem = self.problem
        for i, capacity in enumerate(problem.capacity.tolist()):
            ends = problem.first_bytes * self.first[i] + problem.last_bytes * self.last[i]
            layers = int(problem.layer_bytes[0]) * self.count[i]
            self.solver.addConstr(layers + problem.stage_bytes * self.used[i] + ends <= capacity)

    def _sum(self, terms: Any) -> Any:
        return self.solver.qsum(terms)


@pytest.mark.parametrize("objective", ["latency", "throughput", "balanced"])
@pytest.mark.parametrize("seed", range(5))
def test_no_programme_finds_a_cheaper_placement(objective: Objective, seed: int) -> None:
    problem = random_case(seed, NUM_NODES, NUM_LAYERS, layers="alike", objective=objective).problem()
    counts = range(problem.min_stages, problem.max_stages + 1)
    least_s = min(Programme(problem, num_stages).least_cost_s() for num_stages in counts)
    found = solve(problem)
    assert (found.cost_s if found is not None else float("inf")) == pytest.approx(least_s, rel=CLOSE)


def test_the_programmes_are_about_something() -> None:
    """Most of these problems can be solved, and by several nodes."""
    stages = []
    for seed in range(5):
        found = solve(random_case(seed, NUM_NODES, NUM_LAYERS, layers="alike", objective="throughput").problem())
        stages.append(len(found.placement.nodes) if found is not None else 0)
    assert sum(count > 1 for count in stages) >= 3
