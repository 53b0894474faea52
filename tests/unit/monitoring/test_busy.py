from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.monitoring import BusyShare
from butterfly.specs import StageTiming


def _timing(worker: str, started_s: float, finished_s: float) -> StageTiming:
    return StageTiming(
        worker=worker, received_s=started_s, started_s=started_s, finished_s=finished_s, received_bytes=100
    )


def _share(busy: BusyShare, worker: str) -> float:
    return dict(busy.summary())[worker]


def test_the_share_is_the_time_computed_over_the_time_that_passed() -> None:
    busy = BusyShare()
    for step in range(10):
        busy.record([_timing("w0", step, step + 0.9), _timing("w1", step, step + 0.25)])

    assert [worker for worker, _ in busy.summary()] == ["w0", "w1"]
    assert _share(busy, "w0") == pytest.approx(9.0 / 9.9)
    assert _share(busy, "w1") == pytest.approx(2.5 / 9.25)


def test_only_the_window_counts_and_the_step_on_its_edge_in_part() -> None:
    busy = BusyShare(window_s=10.0)
    for started_s, finished_s in ((0.0, 2.0), (2.0, 6.0), (6.0, 8.0), (14.0, 15.0)):
        busy.record([_timing("w0", started_s, finished_s)])

    assert _share(busy, "w0") == pytest.approx((1.0 + 2.0 + 1.0) / 10.0)  # from 5 to 15


def test_a_pause_within_the_window_is_time_that_passed() -> None:
    busy = BusyShare(window_s=10.0)
    busy.record([_timing("w0", 0.0, 1.0)])
    busy.record([_timing("w0", 100.0, 101.0)])

    assert _share(busy, "w0") == pytest.approx(0.1)


def test_a_bounded_number_of_steps_is_remembered() -> None:
    busy = BusyShare(window_s=1000.0, max_steps=2)
    for started_s, finished_s in ((0.0, 100.0), (100.0, 101.0), (102.0, 103.0)):
        busy.record([_timing("w0", started_s, finished_s)])

    assert _share(busy, "w0") == pytest.approx(2.0 / 3.0)  # from 100 to 103


def test_two_steps_at_once_count_once() -> None:
    busy = BusyShare()
    busy.record([_timing("w0", 0.0, 2.0)])
    busy.record([_timing("w0", 1.0, 3.0)])
    busy.record([_timing("w0", 5.0, 6.0)])

    assert _share(busy, "w0") == pytest.approx(4.0 / 6.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2))
def test_clocks_of_stages_do_not_matter(clocks_s: list[float]) -> None:
    busy = BusyShare()
    for step in range(5):
        busy.record(
            [_timing(f"w{index}", clock_s + step, clock_s + step + 0.5) for index, clock_s in enumerate(clocks_s)]
        )

    assert [share for _, share in busy.summary()] == pytest.approx([2.5 / 4.5, 2.5 / 4.5])


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 40)), min_size=1, max_size=50), st.integers(1, 20))
def test_a_share_is_between_zero_and_one(steps: list[tuple[float, float]], max_steps: int) -> None:
    busy = BusyShare(max_steps=max_steps)
    now_s = 0.0
    for pause_s, compute_s in steps:
        busy.record([_timing("w0", now_s + pause_s, now_s + pause_s + compute_s)])
        now_s += pause_s + compute_s
        assert 0.0 <= _share(busy, "w0") <= 1.0


def test_new_stages_start_afresh() -> None:
    busy = BusyShare()
    busy.record([_timing("w0", 0.0, 1.0), _timing("w1", 0.0, 1.0)])
    busy.record([_timing("w0", 9.0, 10.0), _timing("w1", 9.0, 10.0)])
    busy.record([_timing("w1", 11.0, 12.0)])

    assert busy.summary() == (("w1", 1.0),)


def test_a_clock_that_went_back_starts_afresh() -> None:
    busy = BusyShare()
    busy.record([_timing("w0", 1000.0, 1001.0), _timing("w1", 0.0, 1.0)])
    busy.record([_timing("w0", 5.0, 6.0), _timing("w1", 3.0, 4.0)])

    assert busy.summary() == (("w0", 1.0), ("w1", 0.5))


def test_nothing_recorded_has_no_stages_and_no_stamps_change_nothing() -> None:
    busy = BusyShare()
    assert busy.summary() == ()

    busy.record([_timing("w0", 0.0, 1.0)])
    busy.record([])

    assert busy.summary() == (("w0", 1.0),)


def test_a_step_that_took_no_time_has_a_share_of_zero() -> None:
    busy = BusyShare()
    busy.record([_timing("w0", 5.0, 5.0)])

    assert busy.summary() == (("w0", 0.0),)
