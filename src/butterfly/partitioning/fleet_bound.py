"""What no fleet can give, however many nodes there are: each node's best share, and the quickest trip of a token.

A node with the share w of the layers, in a pipeline of X tokens per second, is busy for w * X / rate of each second, if
its rate is what it would do of all layers with the pipeline's batches. That is no more than 1, so X is at most the sum
of the rates of the pipeline's nodes, and all pipelines give at most the sum over all nodes. Rates grow with batches,
and batches are made of streams: in a pipeline of n stages each of them has 1/n of the pipeline's streams, rounded up.
So all batches together, one for each node, have at most all streams and one less than the number of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from butterfly.partitioning import costs
from butterfly.partitioning.objective import Array
from butterfly.partitioning.problem import Problem

ROUNDING = 1e-9  # relative: the bound is loosened by as much


def fleet_bound(problem: Problem, nodes: Sequence[int], num_streams: int) -> float:
    """Tokens per second that no fleet on these nodes exceeds; infinite where nothing takes any time."""
    forms = list(dict.fromkeys(problem.layer_forms))
    counts = numpy.array([float(problem.layer_forms.count(form)) for form in forms])
    layers = [problem.layer_forms.index(form) for form in forms]
    layers_s = numpy.array([[_layers_s(problem, node, b, layers) for b in range(1, num_streams + 1)] for node in nodes])
    by_shares = _best_sum(_rates(layers_s, counts), num_streams + len(nodes) - 1)
    trip_s = float(layers_s.min(axis=(0, 1)) @ counts) + _ends_s(problem, nodes, num_streams)
    by_trip = num_streams / trip_s if trip_s else float("inf")
    return min(by_shares, by_trip) * (1 + ROUNDING)


def _layers_s(problem: Problem, node: int, num_tokens: int, layers: Sequence[int]) -> list[float]:
    spec = problem.nodes[node]
    return [costs.layer_s(spec, problem.model, layer, num_tokens, problem.context) for layer in layers]


def _rates(layers_s: Array, counts: Array) -> Array:
    """[node, streams - 1]: times per second that it could do all layers for one token, whichever of them it has.

    A layer's share of all is what it takes of their time on an average node.
    """
    mean_s = layers_s[:, 0].mean(axis=0)
    total_s = float(mean_s @ counts)
    shares = mean_s / total_s if total_s else numpy.full(len(counts), 1 / counts.sum())
    streams = numpy.arange(1, layers_s.shape[1] + 1)[None, :, None]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        rates = numpy.where(layers_s > 0, shares * streams / layers_s, numpy.where(shares > 0, numpy.inf, 0.0))
    best: Array = rates.max(axis=2)
    return best


def _best_sum(rates: Array, num_streams: int) -> float:
    """The largest sum of one rate of each node, or none, with so many streams in all batches together."""
    if numpy.isinf(rates).any():
        return float("inf")
    sums = numpy.zeros(num_streams + 1)
    for of_node in rates:
        before = sums.copy()
        for streams, rate in enumerate(of_node.tolist(), start=1):
            sums[streams:] = numpy.maximum(sums[streams:], before[:-streams] + rate)
    return float(sums[-1])


def _ends_s(problem: Problem, nodes: Sequence[int], num_streams: int) -> float:
    """The quickest head, and the way to the first stage and from the last of a single token."""
    head_s = min(
        costs.head_s(problem.nodes[node], problem.model, streams)
        for node in nodes
        for streams in range(1, num_streams + 1)
    )
    batch = problem.costs_of(1)
    chosen = list(nodes)
    return head_s + float(batch.out_s[chosen].min() + batch.back_s[chosen].min())
