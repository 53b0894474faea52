"""How low the slowest stage can get, and the plans with one stage: what needs no search."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from butterfly.partitioning.levels import Trip
from butterfly.partitioning.problem import Placement, Problem
from butterfly.partitioning.uniform import layers_in_time

HALVINGS = 50  # of an interval of seconds


def floors(problem: Problem) -> Iterator[tuple[int, float]]:
    """Each number of stages that may be used, with a lower bound of `slowest_s`."""
    for num_stages in range(problem.min_stages, problem.max_stages + 1):
        yield num_stages, least_slowest_s(problem, num_stages)


def least_slowest_s(problem: Problem, num_stages: int) -> float:
    """No pipeline of so many stages has a `slowest_s` below this: by time alone, memory and links are left out."""
    batch = problem.costs(num_stages)
    layer_s = batch.layer_s.min(axis=1)

    def is_enough(ceiling_s: float) -> bool:
        counts = numpy.sort(layers_in_time(ceiling_s - batch.step_s, layer_s, problem.num_layers))
        return int(counts[-num_stages:].clip(0).sum()) >= problem.num_layers

    low, high = 0.0, float((batch.step_s + layer_s * problem.num_layers).max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return low


def shortest_alone(problem: Problem, ceiling_s: float) -> Trip | None:
    """The shortest trip with all layers on one node."""
    found = []
    for node in range(problem.num_nodes):
        placement = Placement((node,), (problem.num_layers,))
        score = problem.evaluate(placement)
        if score.slowest_s <= ceiling_s and problem.fits(placement):
            found.append(Trip(score.trip_s, score.slowest_s, placement))
    return min(found, default=None)
