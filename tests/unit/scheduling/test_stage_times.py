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


def learned(base_s: float, per_token_s: float, sizes: tuple[int, ...] = (1, 100)) -> StageTimes:
    times = StageTimes()
    for size in sizes:
        times.record(timings(base_s + size * per_token_s), size)
    return times


def test_nothing_is_known_before_steps_have_come_back_with_timings() -> None:
    times = StageTimes()
    times.record((), 64)
    times.record(timings(1.0), 0)  # a step that only carried releases
    assert (times.base_s, times.per_token_s, times.prefill_tokens_per_s) == (None, None, None)
    assert times.chunk_tokens(1000, 2, 48, num_decodes=0) == 48
    assert times.chunk_tokens(1000, 2, 48, num_decodes=4) == 48


def test_the_slowest_stage_counts() -> None:
    times = StageTimes()
    times.record(timings(0.25, 1.5, 0.5), 1)
    times.record(timings(0.5, 1.25, 4.0), 6)
    assert times.per_token_s == pytest.approx(0.5)
    assert times.base_s == pytest.approx(1.0)
    assert times.prefill_tokens_per_s == pytest.approx(2.0)


def test_steps_of_one_size_are_all_put_down_to_their_tokens() -> None:
    times = learned(0.0, 0.25, sizes=(8, 8, 8))
    assert (times.base_s, times.per_token_s) == pytest.approx((0.0, 0.25))


def test_steps_of_one_size_change_the_base_and_keep_a_slope_that_was_learned() -> None:
    times = learned(1.0, 0.125, sizes=(1, 100) * 8)
    for _ in range(60):
        times.record(timings(3.0), 8)
    assert (times.base_s, times.per_token_s) == pytest.approx((2.0, 0.125), rel=0.1)  # the change came in between


def test_noise_that_slopes_downwards_is_no_bargain() -> None:
    times = StageTimes()
    times.record(timings(2.0), 1)
    times.record(timings(1.0), 100)
    assert times.per_token_s is not None
    assert times.per_token_s > 0


@pytest.mark.parametrize("hiccup", [(1, 50.0), (100, 50.0)])
def test_one_hiccup_hardly_matters(hiccup: tuple[int, float]) -> None:
    times = learned(0.01, 0.001, sizes=(1, 100) * 9)
    before = times.base_s, times.per_token_s
    times.record(timings(hiccup[1]), hiccup[0])
    assert (times.base_s, times.per_token_s) == pytest.approx(before, rel=0.01)


def test_a_lasting_change_is_learned() -> None:
    times = learned(0.01, 0.001, sizes=(1, 100) * 50)
    for size in (1, 100) * 16:
        times.record(timings(0.02 + 0.004 * size), size)
    assert (times.base_s, times.per_token_s) == pytest.approx((0.02, 0.004))


class TestChunkBesideDecodes:
    def test_adds_half_of_a_decode_steps_own_time(self) -> None:
        times = learned(BASE_S, PER_TOKEN_S)
        assert times.chunk_tokens(1000, 2, 64, num_decodes=4) == 10  # of 16 + 4 tokens' worth
        assert times.chunk_tokens(1, 4, 64, num_decodes=4) == 10  # whoever waits, however many stages
        assert times.chunk_tokens(1000, 2, 64, num_decodes=16) == 16

    def test_moves_on_however_dear_a_token_is(self) -> None:
        assert learned(0.001, 1.0).chunk_tokens(1000, 2, 64, num_decodes=1) == 4


class TestChunkAlone:
    def test_makes_the_pipeline_end_earliest(self) -> None:
        waiting, stages = 1250, 3

        def seconds(chunk: float) -> float:
            return (waiting / chunk + stages - 1) * (BASE_S + PER_TOKEN_S * chunk)

        chunk = learned(BASE_S, PER_TOKEN_S).chunk_tokens(waiting, stages, 64, num_decodes=0)
        assert chunk == 100  # sqrt(1250 * 16 / 2)
        assert seconds(chunk) == min(seconds(size) for size in range(1, waiting + 1))

    def test_grows_with_what_waits_and_shrinks_with_stages(self) -> None:
        times = learned(BASE_S, PER_TOKEN_S)
        assert times.chunk_tokens(5000, 3, 64, num_decodes=0) == 200
        assert times.chunk_tokens(1250, 9, 64, num_decodes=0) == 50

    def test_of_one_stage_takes_one_second(self) -> None:
        assert learned(BASE_S, PER_TOKEN_S).chunk_tokens(10_000, 1, 64, num_decodes=0) == 1024

    def test_is_never_longer_than_one_second_nor_shorter_than_sixteen_tokens(self) -> None:
        assert learned(BASE_S, PER_TOKEN_S).chunk_tokens(1_000_000, 2, 64, num_decodes=0) == 1024
        assert learned(1e-6, PER_TOKEN_S).chunk_tokens(100, 2, 64, num_decodes=0) == 16

    def test_without_a_base_takes_one_token_for_it(self) -> None:
        assert learned(0.0, PER_TOKEN_S).chunk_tokens(900, 2, 64, num_decodes=0) == 30


def test_steps_that_take_no_time_are_no_error() -> None:
    times = learned(0.0, 0.0)
    assert times.prefill_tokens_per_s is not None
    assert times.chunk_tokens(100, 1, 64, num_decodes=0) >= 16
    assert times.chunk_tokens(100, 2, 64, num_decodes=1) >= 4
