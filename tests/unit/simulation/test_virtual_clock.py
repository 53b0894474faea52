"""Events happen in order of time, then of booking."""

from __future__ import annotations

from functools import partial

from butterfly.simulation.devices import ModelledLink
from butterfly.simulation.virtual_clock import VirtualClock
from butterfly.specs import LinkSpec


def test_events_happen_in_order_of_time_then_of_booking() -> None:
    clock, seen = VirtualClock(), list[str]()
    for time_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.at(time_s, partial(seen.append, name))
    for _ in range(3):
        clock.advance()
    assert (seen, clock.now_s) == (["a", "b", "c"], 2.0)


def test_what_is_booked_for_the_past_happens_next_and_time_never_goes_back() -> None:
    clock, times = VirtualClock(), list[float]()
    clock.at(5.0, lambda: clock.at(1.0, lambda: times.append(clock.now_s)))
    clock.advance()
    clock.advance()
    assert times == [5.0]


def test_every_repeats_until_told_to_stop() -> None:
    clock, times = VirtualClock(), list[float]()

    def note() -> bool:
        times.append(clock.now_s)
        return len(times) < 3

    clock.every(2.0, note)
    for _ in range(3):
        clock.advance()
    assert times == [2.0, 4.0, 6.0]


def test_bytes_on_a_link_follow_each_other_and_latencies_overlap() -> None:
    link = ModelledLink(LinkSpec(source="a", target="b", latency_s=1.0, bandwidth_bytes_per_s=10.0, software_s=0.5))
    assert link.send(20, 0.0) == 3.5
    assert link.send(20, 0.5) == 5.5
    assert link.send(10, 9.0) == 11.5
