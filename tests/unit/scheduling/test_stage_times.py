"""What steps cost is learned from their timings, and a chunk's length follows by formula."""

from __future__ import annotations

import pytest

from butterfly.scheduling.stage_times import StageTimes
from butterfly.specs import StageTiming


def timings(*seconds: float) -> tuple[StageTiming, ...]:
    return tuple(
        StageTiming(worker=f"w{index}", received_s=4.0, started_s=5.0, finished_s=5.0 + value, received_bytes=0)
        for index, value in enumerate(seconds)
    )


BASE_S, PER_TOKEN_S = 1 / 64, 1 / 1024  # exact in binary: the formulas round down


def learned(base_s: float | None, per_token_s: float | None, chunk: int = 100) -> StageTimes:
    times = StageTimes()
    if base_s is not None:
        times.record(timings(base_s), 0)
    if per_token_s is not None:
        times.record(timings((base_s or 0.0) + chunk * per_token_s), chunk)
    return times


def test_nothing_is_known_before_steps_have_come_back_with_timings() -> None:
    times = StageTimes()
    times.record((), 64)
    assert (times.base_s, times.per_token_s, times.prefill_tokens_per_s) == (None, None, None)
    assert times.chunk_tokens(1000, 2, 48, beside_decodes=False) == 48
    assert times.chunk_tokens(1000, 2, 48, beside_decodes=True) == 48


def test_the_slowest_stage_counts() -> None:
    times = StageTimes()
    times.record(timings(0.25, 1.0, 0.5), 0)
    times.record(timings(0.5, 1.25, 4.0), 6)
    assert times.base_s == pytest.approx(1.0)
    assert times.per_token_s == pytest.approx(0.5)
    assert times.prefill_tokens_per_s == pytest.approx(2.0)


def test_without_a_measured_base_the_whole_step_is_the_prompts() -> None:
    assert learned(None, 0.25).per_token_s == pytest.approx(0.25)


def test_at_least_half_of_a_step_is_put_down_to_its_prompt_tokens() -> None:
    times = StageTimes()
    times.record(timings(1.0), 0)
    times.record(timings(0.5), 5)  # less than the base: half of it
    assert times.per_token_s == pytest.approx(0.05)


def test_a_few_prompt_tokens_say_nothing() -> None:
    times = learned(1.0, None)
    times.record(timings(1.5), 3)
    assert times.per_token_s is None


def test_one_hiccup_changes_nothing() -> None:
    times = StageTimes()
    for _ in range(9):
        times.record(timings(0.01), 0)
        times.record(timings(0.11), 100)
    before = times.base_s, times.per_token_s
    times.record(timings(50.0), 0)
    times.record(timings(50.0), 100)
    assert (times.base_s, times.per_token_s) == pytest.approx(before)


def test_a_lasting_change_is_learned() -> None:
    times = StageTimes()
    for seconds in [0.01] * 100 + [0.04] * 16:
        times.record(timings(seconds), 0)
    assert times.base_s == pytest.approx(0.04)


class TestChunkBesideDecodes:
    def test_adds_three_quarters_of_a_decode_steps_own_time(self) -> None:
        times = learned(BASE_S, PER_TOKEN_S)
        assert times.chunk_tokens(1000, 2, 64, beside_decodes=True) == 12
        assert times.chunk_tokens(1, 4, 64, beside_decodes=True) == 12  # whoever waits, however many stages

    def test_moves_on_however_dear_a_token_is(self) -> None:
        assert learned(base_s=0.001, per_token_s=1.0).chunk_tokens(1000, 2, 64, beside_decodes=True) == 4

    def test_is_the_first_guess_until_a_decode_step_came_back(self) -> None:
        assert learned(None, 0.001).chunk_tokens(1000, 2, 64, beside_decodes=True) == 64


class TestChunkAlone:
    def test_makes_the_pipeline_end_earliest(self) -> None:
        waiting, stages = 1250, 3

        def seconds(chunk: float) -> float:
            return (waiting / chunk + stages - 1) * (BASE_S + PER_TOKEN_S * chunk)

        chunk = learned(BASE_S, PER_TOKEN_S).chunk_tokens(waiting, stages, 64, beside_decodes=False)
        assert chunk == 100  # sqrt(1250 * 16 / 2)
        assert seconds(chunk) == min(seconds(size) for size in range(1, waiting + 1))

    def test_grows_with_what_waits_and_shrinks_with_stages(self) -> None:
        times = learned(BASE_S, PER_TOKEN_S)
        assert times.chunk_tokens(5000, 3, 64, beside_decodes=False) == 200
        assert times.chunk_tokens(1250, 9, 64, beside_decodes=False) == 50

    def test_of_one_stage_takes_half_a_second(self) -> None:
        assert learned(BASE_S, PER_TOKEN_S).chunk_tokens(10_000, 1, 64, beside_decodes=False) == 512

    def test_is_never_longer_than_half_a_second_nor_shorter_than_sixteen_tokens(self) -> None:
        assert learned(BASE_S, PER_TOKEN_S).chunk_tokens(1_000_000, 2, 64, beside_decodes=False) == 512
        assert learned(1e-6, PER_TOKEN_S).chunk_tokens(1000, 2, 64, beside_decodes=False) == 16

    def test_without_a_base_takes_one_token_for_it(self) -> None:
        assert learned(None, PER_TOKEN_S).chunk_tokens(900, 2, 64, beside_decodes=False) == 30


def test_steps_that_take_no_time_are_no_error() -> None:
    times = learned(0.0, 0.0)
    assert times.prefill_tokens_per_s is not None
    assert times.chunk_tokens(100, 1, 64, beside_decodes=False) >= 16
    assert times.chunk_tokens(100, 2, 64, beside_decodes=True) >= 4
