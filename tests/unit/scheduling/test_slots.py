"""Alternating batches, the spare slot, and how long a chunk is: every stage has work, and readers hardly notice."""

from __future__ import annotations

from itertools import pairwise

from butterfly.specs import StepPlan
from tests.unit.scheduling.rig import Rig, make_config, make_request, output_of


def start(**options: object) -> Rig:
    return Rig(make_config(**{"kv_capacity_tokens": 8192, "max_context": 2048, "max_num_sequences": 32, **options}))


def decoding(rig: Rig, *lengths: int) -> Rig:
    """Requests 0, 1, ... with so many tokens to go have just got their first token; nothing is in flight."""
    for number, max_tokens in enumerate(lengths):
        rig.add(make_request(str(number), 2, max_tokens + 1))
    rig.round()
    return rig


def sizes(plans: list[StepPlan]) -> list[int]:
    return [len(plan.sequences) for plan in plans]


def test_a_burst_is_spread_evenly_over_the_slots() -> None:
    rig = decoding(start(num_slots=3), *[9] * 7)
    plans = rig.fill()
    assert [plan.slot for plan in plans] == [0, 1, 2]
    assert [[part.sequence_id for part in plan.sequences] for plan in plans] == [[1, 2, 3], [4, 5, 6], [7]]


def test_the_plain_loop_takes_all_in_one_step() -> None:
    rig = decoding(start(num_slots=1), *[9] * 7)
    assert sizes(rig.fill()) == [7]


def test_batches_stay_even_as_requests_end() -> None:
    rig = decoding(start(num_slots=2), 2, 2, 2, 9, 9, 9)
    assert sizes(rig.fill()) == [3, 3]
    for _ in range(4):  # the first three end together, and with them a whole batch
        rig.answer()
        rig.fill()
    assert rig.scheduler.counts.num_running == 3
    batches = []
    for _ in range(6):
        rig.answer()
        batches += sizes(rig.fill())
    assert set(batches) == {1, 2}


def test_sequences_take_turns() -> None:
    rig = decoding(start(num_slots=2), 9, 9, 9)
    turns = [{part.sequence_id for part in rig.round().sequences} for _ in range(6)]
    assert all(len(turn) == 2 for turn in turns)
    assert all(one | next_one == {1, 2, 3} for one, next_one in pairwise(turns))


def test_one_reader_is_in_one_step_at_a_time() -> None:
    rig = decoding(start(num_slots=3, num_spare_slots=1), 9)
    assert sizes(rig.fill()) == [1]


def test_slots_are_used_again_as_results_come() -> None:
    rig = decoding(start(num_slots=2), 9, 9)
    rig.fill()
    slots = []
    for _ in range(4):
        rig.answer()
        slots += [plan.slot for plan in rig.fill()]
    assert slots == [0, 1, 0, 1]


class TestPromptsInFlight:
    def test_a_long_prompt_has_a_chunk_in_every_stage_and_one_to_spare(self) -> None:
        rig = start(num_slots=3, num_spare_slots=1, first_chunk_tokens=10)
        rig.add(make_request("a", num_prompt_tokens=100))
        assert [rig.shapes(plan) for plan in rig.fill()] == [[(1, start, 10)] for start in (0, 10, 20, 30)]
        assert rig.engine.max_chunks_in_flight == 4
        rig.run_until_idle()
        assert rig.tokens("a") == output_of(make_request("a", 100))

    def test_the_last_chunk_samples_and_nothing_follows_it_before_its_token_is_known(self) -> None:
        rig = start(num_slots=3, first_chunk_tokens=10)
        rig.add(make_request("a", num_prompt_tokens=15))
        assert [plan.sequences[0].sampling is not None for plan in rig.fill()] == [False, True]


class TestSpareSlot:
    def test_a_whole_decode_batch_may_wait_in_front_of_the_first_stage(self) -> None:
        rig = start(num_slots=2, num_spare_slots=1, first_chunk_tokens=4)
        rig = decoding(rig, 9)
        rig.add(make_request("long", num_prompt_tokens=100))
        first, second = rig.fill()  # the reader's step takes a chunk along, and one more chunk goes alone
        assert rig.shapes(first) == [(1, 2, 1), (2, 0, 4)]
        assert rig.shapes(second) == [(2, 4, 4)]
        rig.answer()
        assert [rig.shapes(plan) for plan in rig.fill()] == [[(1, 3, 1), (2, 8, 4)]]
        rig.run_until_idle()

    def test_is_taken_when_prompts_alone_fill_the_slots(self) -> None:
        rig = start(num_slots=1, num_spare_slots=1, first_chunk_tokens=4)
        rig.add(make_request("long", num_prompt_tokens=100))
        rig.add(make_request("short", num_prompt_tokens=4, priority=-1))
        short, chunk = rig.fill()
        assert (rig.shapes(short), rig.shapes(chunk)) == ([(1, 0, 4)], [(2, 0, 4)])
        rig.answer()
        (decode,) = rig.fill()  # the one slot has a chunk: the whole decode batch waits behind it
        assert rig.shapes(decode)[0] == (1, 4, 1)

    def test_is_not_for_part_of_a_batch(self) -> None:
        rig = decoding(start(num_slots=1, num_spare_slots=1), 9, 9)
        rig.add(make_request("new", num_prompt_tokens=4))
        (plan,) = rig.fill()
        assert rig.shapes(plan) == [(1, 2, 1), (2, 2, 1), (3, 0, 4)]
        rig.answer()
        assert sizes(rig.fill()) == [3]

    def test_is_not_for_prompts_while_somebody_reads(self) -> None:
        rig = decoding(start(num_slots=2, num_spare_slots=1, first_chunk_tokens=4), 9, 9)
        rig.add(make_request("long", num_prompt_tokens=100))
        assert [rig.shapes(plan) for plan in rig.fill()] == [[(1, 2, 1), (3, 0, 4)], [(2, 2, 1), (3, 4, 4)]]


class TestChunkLength:
    def test_follows_from_the_measured_times(self) -> None:
        rig = Rig(make_config(num_slots=2, kv_capacity_tokens=8192, max_context=4096), [(1 / 64, 1 / 1024)])
        rig.add(make_request("a", 4, 400))
        for _ in range(40):
            rig.round()
        base_s = 1 / 64 + 1 / 1024
        rig.add(make_request("long", num_prompt_tokens=2000))
        chunks = [rig.round().sequences[-1].num_tokens for _ in range(100)]
        assert 1.4 * base_s < 1 / 64 + (1 + chunks[-1]) / 1024 <= 1.5 * base_s + 1 / 1024  # rounded up

    def test_without_readers_is_long(self) -> None:
        rig = Rig(make_config(num_slots=2, kv_capacity_tokens=8192, max_context=4096), [(1 / 64, 1 / 1024)])
        rig.add(make_request("a", 64, 40))
        rig.run_until_idle()
        rig.add(make_request("long", num_prompt_tokens=2000))
        chunks = [part.num_tokens for plan in rig.fill() for part in plan.sequences]
        assert min(chunks) > 100

    def test_never_exceeds_the_budget_of_a_step(self) -> None:
        rig = start(num_slots=1, max_num_batched_tokens=30, first_chunk_tokens=64)
        rig.add(make_request("long", num_prompt_tokens=100))
        assert rig.step().num_tokens == 30


def test_more_readers_than_a_step_may_have_tokens_take_turns() -> None:
    rig = start(num_slots=1, num_spare_slots=1, max_num_batched_tokens=2)
    for name in "abc":
        rig.add(make_request(name, 1, 9))
    assert sizes(rig.fill()) == [2, 1]  # prompts may take the spare slot: nobody reads yet
    rig.answer()
    rig.answer()
    turns = [{part.sequence_id for part in rig.round().sequences} for _ in range(6)]
    assert all(len(turn) == 2 for turn in turns)
    assert all(one | next_one == {1, 2, 3} for one, next_one in pairwise(turns))
