"""What a plan makes small, as one number of seconds.

`trip_s` is what one batch takes through all stages and links and back; `slowest_s` what the slowest stage takes for a
batch, or the busiest link to carry it. Every objective here grows with both and never falls with either: the exact
solvers rely on that, and on nothing else. A new objective is one branch of `batch_tokens` and one of `cost`.

- latency: the trip of a single stream's token, which is its TPOT.
- throughput: seconds per token of all streams together. C streams are spread over as many slots as stages (or fewer,
  one stream each). A slot comes back after its trip, or, where stages are kept busy, after a turn of every slot.
- balanced: the mean of a loaded stream's trip and of the time that a full round of the slots takes at least.
"""

from __future__ import annotations

from typing import TypeVar

import numpy
import numpy.typing as npt

from butterfly.specs import Objective

Array = npt.NDArray[numpy.float64]
_Seconds = TypeVar("_Seconds", float, Array)


def batch_tokens(objective: Objective, concurrency: int, num_stages: int) -> int:
    """Tokens of one decode step that the times are taken for."""
    return 1 if objective == "latency" else -(-concurrency // num_stages)


def cost(objective: Objective, trip_s: _Seconds, slowest_s: _Seconds, num_stages: int, concurrency: int) -> _Seconds:
    """Seconds; smaller is better. Works on numbers and on arrays."""
    round_s = min(num_stages, concurrency) * slowest_s
    if objective == "latency":
        return trip_s
    if objective == "throughput":
        longest: _Seconds = numpy.maximum(trip_s, round_s)
        return longest / concurrency
    return (trip_s + round_s) / 2
