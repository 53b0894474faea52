"""Latency and bandwidth of a link, from how long payloads of several sizes take to be answered."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from butterfly.specs import LinkSpec

RoundTrip = Callable[[int], float]
"""Sends so many bytes and returns the seconds until the (small) answer is here."""

SMALL_BYTES = 4 << 10  # about one hidden state
LARGE_BYTES = (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
_NUM_WARM_UP = 2  # the first of all waits for connections
_NUM_SMALL, _FEWEST_SMALL, _SMALL_S = 20, 5, 0.25
_NUM_LARGE, _LARGE_S = 3, 0.2
_SHORTEST_S = 1e-6  # a larger payload may come back sooner, where noise is longer than both


def measure_link(source: str, target: str, round_trip: RoundTrip) -> LinkSpec:
    """Measure for about half a second on a fast link, and for a few payloads' time on a slow one.

    The latency is half of a small payload's round trip, but for the payload itself, so it includes the transport at
    both ends; what its owners do with a message does not show in it. The bandwidth is what the largest payloads add
    over those before them: what passes at once, into buffers, does not count.
    """
    for _ in range(_NUM_WARM_UP):
        round_trip(SMALL_BYTES)
    small_s = _median_s(round_trip, SMALL_BYTES, _NUM_SMALL, _SMALL_S, fewest=_FEWEST_SMALL)
    before_bytes, before_s = 0, 0.0
    last_bytes, last_s = SMALL_BYTES, small_s
    for num_bytes in LARGE_BYTES:
        if last_bytes > SMALL_BYTES and last_s * num_bytes / last_bytes > _LARGE_S:
            break
        before_bytes, before_s = last_bytes, last_s
        last_bytes, last_s = num_bytes, _median_s(round_trip, num_bytes, _NUM_LARGE, _LARGE_S)
    bandwidth = (last_bytes - before_bytes) / max(_SHORTEST_S, last_s - before_s)
    return LinkSpec(
        source=source,
        target=target,
        latency_s=max(0.0, small_s - SMALL_BYTES / bandwidth) / 2,
        bandwidth_bytes_per_s=bandwidth,
    )


def _median_s(round_trip: RoundTrip, num_bytes: int, most: int, enough_s: float, fewest: int = 1) -> float:
    """The median of at most so many round trips; fewer when they have taken long enough."""
    seconds: list[float] = []
    while len(seconds) < fewest or (len(seconds) < most and sum(seconds) < enough_s):
        seconds.append(round_trip(num_bytes))
    return median(seconds)
