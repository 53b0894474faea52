from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.worker.round_trips import SMALL_BYTES, measure_link


class EmulatedLink:
    """There and back with a latency each, and payloads at a rate; what fits the bucket leaves at once."""

    def __init__(self, latency_s: float, bandwidth: float, bucket_bytes: int = 0, warm_up_s: float = 0.0) -> None:
        self.latency_s, self.bandwidth, self.bucket_bytes = latency_s, bandwidth, bucket_bytes
        self.warm_up_s = warm_up_s
        self.trips: list[tuple[int, float]] = []

    def __call__(self, num_bytes: int) -> float:
        seconds = 2 * self.latency_s + max(0, num_bytes - self.bucket_bytes) / self.bandwidth
        if not self.trips:
            seconds += self.warm_up_s
        self.trips.append((num_bytes, seconds))
        return seconds


@settings(deadline=None)
@given(latency_s=st.floats(0.0, 0.5), bandwidth=st.floats(1e4, 1e10), warm_up_s=st.floats(0.0, 1.0))
def test_a_link_is_measured_as_it_is(latency_s: float, bandwidth: float, warm_up_s: float) -> None:
    link = EmulatedLink(latency_s, bandwidth, warm_up_s=warm_up_s)
    measured = measure_link("a", "b", link)
    assert (measured.source, measured.target) == ("a", "b")
    assert measured.latency_s == pytest.approx(latency_s, rel=1e-3, abs=1e-6)
    assert measured.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-3)


@pytest.mark.parametrize(
    ("latency_s", "bandwidth", "most_s", "largest_bytes"),
    [(50e-6, 1e9, 0.5, 4 << 20), (0.001, 2.5e6, 0.9, 256 << 10), (0.1, 2.5e6, 3.0, 16 << 10)],
    ids=["loopback", "20 Mb/s", "another continent"],
)
def test_it_takes_what_the_link_lets_it(latency_s: float, bandwidth: float, most_s: float, largest_bytes: int) -> None:
    link = EmulatedLink(latency_s, bandwidth)
    measure_link("a", "b", link)
    assert sum(seconds for _, seconds in link.trips) < most_s
    assert max(num_bytes for num_bytes, _ in link.trips) == largest_bytes


def test_what_a_bucket_lets_pass_at_once_does_not_count() -> None:
    measured = measure_link("a", "b", EmulatedLink(0.001, 2.5e6, bucket_bytes=32 << 10))
    assert measured.bandwidth_bytes_per_s == pytest.approx(2.5e6)
    assert measured.latency_s == pytest.approx(0.001, abs=SMALL_BYTES / 2.5e6)


def test_noise_makes_no_negative_bandwidth() -> None:
    """A larger payload that came back sooner."""
    measured = measure_link("a", "b", lambda num_bytes: 0.001 - num_bytes * 1e-12)
    assert measured.bandwidth_bytes_per_s > 1e9
    assert 0.0 <= measured.latency_s <= 0.0005
