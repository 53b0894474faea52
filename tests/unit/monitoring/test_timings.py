from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.monitoring import StepStatistics, compute_s, sent_bytes, software_s_per_hop
from butterfly.specs import MeasuredSpeed, StageSpeed, StageTiming


def _timing(worker: str, compute_s: float, *, clock_s: float = 0.0, received_bytes: int = 100) -> StageTiming:
    return StageTiming(
        worker=worker,
        received_s=clock_s,
        started_s=clock_s + 0.001,
        finished_s=clock_s + 0.001 + compute_s,
        received_bytes=received_bytes,
    )


def test_software_is_what_no_stage_computed_over_the_messages() -> None:
    timings = [_timing("w0", 0.010), _timing("w1", 0.020), _timing("w2", 0.030)]

    assert [compute_s(timing) for timing in timings] == pytest.approx([0.010, 0.020, 0.030])
    assert software_s_per_hop(timings, 0.068) == pytest.approx(0.002)  # 8 ms over 4 messages
    assert sent_bytes(timings) == 300


def test_no_stages_is_one_hop() -> None:
    assert software_s_per_hop([], 0.5) == 0.5


def test_rounding_of_clocks_does_not_make_it_negative() -> None:
    assert software_s_per_hop([_timing("w0", 0.010)], 0.00999) == 0.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3))
def test_clocks_of_stages_do_not_matter(clocks_s: list[float]) -> None:
    timings = [_timing(f"w{index}", 0.010, clock_s=clock_s) for index, clock_s in enumerate(clocks_s)]

    assert software_s_per_hop(timings, 0.034) == pytest.approx(0.001, abs=1e-8)


def test_medians_ignore_a_hiccup() -> None:
    statistics = StepStatistics()
    for compute in (0.010, 0.011, 3.0):
        statistics.record([_timing("w0", compute), _timing("w1", 0.020)], compute + 0.026)

    summary = statistics.summary()

    assert summary.num_steps == 3
    assert summary.total_s == pytest.approx(0.037)
    assert summary.software_s_per_hop == pytest.approx(0.002)
    assert summary.sent_bytes == 200
    assert [stage.worker for stage in summary.stages] == ["w0", "w1"]
    assert [stage.compute_s for stage in summary.stages] == pytest.approx([0.011, 0.020])


def test_the_window_is_bounded_and_forgets_the_oldest() -> None:
    statistics = StepStatistics(window=2)
    for compute in (9.0, 0.010, 0.010):
        statistics.record([_timing("w0", compute)], compute)

    assert statistics.summary().num_steps == 2
    assert statistics.summary().total_s == pytest.approx(0.010)


def test_a_new_pipeline_starts_afresh() -> None:
    statistics = StepStatistics()
    statistics.record([_timing("w0", 0.010), _timing("w1", 0.010)], 0.03)
    statistics.record([_timing("w0", 0.020)], 0.03)

    summary = statistics.summary()

    assert summary.num_steps == 1
    assert [stage.worker for stage in summary.stages] == ["w0"]


def test_nothing_recorded_is_all_zero() -> None:
    summary = StepStatistics().summary()

    assert (summary.num_steps, summary.total_s, summary.stages) == (0, 0.0, ())


def test_what_a_lone_stream_takes_is_the_median_of_its_last_steps() -> None:
    statistics = StepStatistics()
    for context, compute in ((10, 0.25), (11, 9.0), (12, 0.5)):
        timings = [_timing("w0", compute, clock_s=-0.001), _timing("w1", 0.125, clock_s=-0.001)]
        statistics.record(timings, compute + 1.0, lone_context=context)
        statistics.record(timings, 50.0)  # in company

    assert statistics.lone_stream() == MeasuredSpeed(
        num_steps=3,
        context=11,
        tpot_s=1.5,
        stages=(StageSpeed(worker="w0", compute_s=0.5), StageSpeed(worker="w1", compute_s=0.125)),
    )
    assert statistics.summary().num_steps == 6


def test_lone_steps_of_another_pipeline_or_long_ago_are_forgotten() -> None:
    statistics = StepStatistics()
    for context in range(100):
        statistics.record([_timing("w0", 0.010)], 0.1, lone_context=context)
    measured = statistics.lone_stream()
    assert measured is not None
    assert (measured.num_steps, measured.context) == (64, round((36 + 99) / 2))

    statistics.record([_timing("w1", 0.010)], 0.1)
    assert statistics.lone_stream() is None
