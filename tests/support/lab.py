"""An emulated cluster for tests, or the reason why there can be none."""

from __future__ import annotations

import pytest
from benchmarks.lab import Lab, Link, NodeConfig, unavailable


def lab_or_skip(*configs: NodeConfig) -> Lab:
    """A lab to enter with `with`; skips the test, or all that a fixture is for, where none can be made."""
    if reason := unavailable():
        pytest.skip(reason)
    return Lab(configs)


def alike(*names: str, rate_bits_per_s: float, rtt_s: float) -> list[NodeConfig]:
    """Nodes whose links are all the same: each gives a quarter of the RTT."""
    link = Link(rate_bits_per_s, rtt_s / 4)
    return [NodeConfig(name, link, link) for name in names]
