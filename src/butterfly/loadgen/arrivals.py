"""When requests arrive in an open loop."""

from __future__ import annotations

import numpy as np


def poisson_arrivals(num_requests: int, rate_per_s: float, seed: int) -> list[float]:
    """Seconds after the start at which each request arrives, the first at once: gaps are exponential."""
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, num_requests)
    gaps_s[0] = 0.0
    times_s: list[float] = np.cumsum(gaps_s).tolist()
    return times_s
