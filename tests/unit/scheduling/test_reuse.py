"""What has been computed once is not computed again: kept sequences, copies, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from butterfly.specs import Adoption, Request
from tests.unit.scheduling.rig import Rig, make_config, make_request, output_of

SYSTEM = list(range(500, 564))  # four blocks


def start(**options: object) -> Rig:
    return Rig(make_config(**options))


def ask(
    rig: Rig, name: str, prompt: Sequence[int], max_tokens: int = 3, num_prompt_logprobs: int | None = None
) -> Request:
    """Serve one request to its end."""
    request = rig.add(make_request(name, prompt=prompt, max_tokens=max_tokens, num_prompt_logprobs=num_prompt_logprobs))
    rig.run_until_idle()
    assert rig.end(name).finish_reason == "length"
    return request


def said(request: Request) -> list[int]:
    return [*request.prompt_token_ids, *output_of(request)]


def computed(rig: Rig, name: str) -> int:
    """Prompt tokens that were computed for a request when it first ran."""
    end = rig.end(name)
    return end.num_prompt_tokens - end.num_cached_tokens


def test_ten_turns_of_a_chat_compute_only_what_is_new() -> None:
    rig = start(max_context=1024)
    history: list[int] = []
    for turn in range(10):
        before = rig.engine.num_computed_tokens
        history += range(1000 * turn, 1000 * turn + 13)
        history = said(ask(rig, f"turn{turn}", history, max_tokens=7))
        # The last token of an answer was sampled, but never computed; nor is that of this one.
        assert computed(rig, f"turn{turn}") == 13 + (turn > 0)
        assert rig.engine.num_computed_tokens - before == 13 + (turn > 0) + 6
    assert [adoption.keeps_source for adoption in rig.engine.adoptions] == [False] * 9
    assert len(rig.engine.caches) == 1


def test_a_conversation_takes_its_past_over_and_its_stages_hear_of_it_once() -> None:
    rig = start()
    first = ask(rig, "a", range(20))
    rig.add(make_request("b", prompt=[*said(first), 1, 2]))
    plan = rig.step()
    assert plan.adopted == (Adoption(sequence_id=2, source_id=1, num_tokens=22, keeps_source=False),)
    assert (plan.released, rig.shapes(plan)) == ((), [(2, 22, 3)])
    assert set(rig.engine.caches) == {2}


def test_a_shared_beginning_is_copied_and_stays_for_the_next_one() -> None:
    rig = start()
    ask(rig, "a", [*SYSTEM, *range(20)])
    for name in "bcd":
        ask(rig, name, [*SYSTEM, ord(name), *range(20)])
        assert computed(rig, name) == 21
    assert [(a.source_id, a.num_tokens, a.keeps_source) for a in rig.engine.adoptions] == [(1, 64, True)] * 3


def test_a_shared_beginning_is_taken_over_when_there_is_no_room_for_a_copy() -> None:
    rig = start(kv_capacity_tokens=160, max_context=160)
    ask(rig, "a", [*SYSTEM, *range(20)])
    ask(rig, "b", [*SYSTEM, *range(100, 120)])
    assert computed(rig, "b") == 20
    assert [adoption.keeps_source for adoption in rig.engine.adoptions] == [False]
    assert len(rig.engine.caches) == 1


def test_what_a_running_sequence_has_computed_is_copied() -> None:
    rig = start(first_chunk_tokens=40)
    rig.add(make_request("a", prompt=[*SYSTEM, 1], max_tokens=30))
    rig.round()
    rig.add(make_request("b", prompt=[*SYSTEM, 2], max_tokens=3))
    plan = rig.step()
    assert plan.adopted == (Adoption(sequence_id=2, source_id=1, num_tokens=40, keeps_source=True),)
    assert rig.shapes(plan) == [(1, 40, 25), (2, 40, 15)]
    rig.run_until_idle()


def test_nothing_is_copied_into_room_that_others_keep() -> None:
    rig = start(kv_capacity_tokens=160, max_context=160)
    ask(rig, "kept", range(200, 270))  # five blocks of ten
    rig.add(make_request("a", prompt=range(40), max_tokens=30))
    rig.round()
    rig.add(make_request("b", prompt=range(40)))
    plan = rig.step()
    assert (plan.adopted, plan.released) == ((), (1,))
    rig.run_until_idle()


def test_what_is_still_under_way_is_not_copied() -> None:
    rig = start(num_slots=2, first_chunk_tokens=40)
    rig.add(make_request("a", prompt=SYSTEM))
    rig.step()
    rig.add(make_request("b", prompt=SYSTEM))
    assert rig.step().adopted == ()
    rig.run_until_idle()


def test_one_token_is_computed_even_if_all_of_the_prompt_is_known() -> None:
    rig = start()
    ask(rig, "a", SYSTEM, max_tokens=20)
    ask(rig, "b", SYSTEM)
    assert computed(rig, "b") == 1


def test_less_than_a_block_is_not_worth_it() -> None:
    rig = start()
    ask(rig, "a", range(40))
    ask(rig, "b", [*range(15), 99, 99])
    assert computed(rig, "b") == 17


def test_a_preempted_or_requeued_request_does_not_change_its_figure() -> None:
    rig = start()
    ask(rig, "a", range(40))
    rig.add(make_request("b", prompt=range(45)))
    rig.round()
    rig.replace_stages()
    rig.run_until_idle()
    assert [o.num_cached_tokens for o in rig.outputs if o.request_id == "b"] == [40] * 3


class TestKeptSequences:
    def test_go_least_recently_used_first(self) -> None:
        rig = start(kv_capacity_tokens=160, max_context=160)  # ten blocks
        a, _, _ = (ask(rig, name, range(100 * i, 100 * i + 40)) for i, name in enumerate("abc"))
        assert rig.scheduler.counts.kept_tokens == 9 * 16
        ask(rig, "a goes on", said(a))  # and so was used last
        rig.add(make_request("d", prompt=range(900, 930)))
        plan = rig.step()
        assert plan.released == (2,)  # of "b"
        rig.run_until_idle()
        ask(rig, "c again", range(200, 240))
        assert computed(rig, "c again") == 1

    def test_shared_ones_count_as_used(self) -> None:
        rig = start(max_kept_sequences=2)
        ask(rig, "shared", [*SYSTEM, *range(20)])
        ask(rig, "other", range(40))
        ask(rig, "user", [*SYSTEM, *range(100, 120)])
        assert set(rig.engine.caches) == {1, 3}

    def test_are_no_more_than_the_limit(self) -> None:
        rig = start(max_kept_sequences=2)
        for number in range(5):
            ask(rig, str(number), range(100 * number, 100 * number + 20))
        assert set(rig.engine.caches) == {4, 5}
        assert rig.scheduler.counts.kept_tokens == 2 * 32

    def test_of_no_more_use_beside_a_longer_one_are_dropped(self) -> None:
        rig = start(num_slots=2)
        short = rig.add(make_request("short", prompt=range(20)))
        rig.add(make_request("long", prompt=[*said(short), *range(20)], max_tokens=9))
        rig.run_until_idle()  # both were computed at once, so nothing was reused
        assert rig.engine.adoptions == []
        assert set(rig.engine.caches) == {2}

    def test_shorter_than_a_block_are_not_kept(self) -> None:
        rig = start()
        ask(rig, "a", range(12), max_tokens=4)
        assert rig.engine.caches == {}
        ask(rig, "b", range(12), max_tokens=5)
        assert len(rig.engine.caches) == 1

    def test_are_none_if_none_may_be_kept(self) -> None:
        rig = start(max_kept_sequences=0)
        ask(rig, "a", range(40))
        assert (rig.engine.caches, rig.scheduler.counts.kept_tokens) == ({}, 0)

    def test_never_stand_in_the_way_of_running_ones(self) -> None:
        rig = start(kv_capacity_tokens=160, max_context=160)
        for number in range(4):
            ask(rig, str(number), range(100 * number, 100 * number + 100), max_tokens=60)
        assert rig.scheduler.counts.num_preemptions == 0


class TestAdoptionsThatWait:
    """The stages hear of an adoption with the next step. What becomes of those concerned until then?"""

    def test_a_source_whose_room_is_needed_at_once_is_taken_over_instead_of_copied(self) -> None:
        rig = start(kv_capacity_tokens=160, max_context=160, first_chunk_tokens=200)
        ask(rig, "source", [*range(32), *range(100, 120)])
        rig.add(make_request("b", prompt=[*range(32), *range(200, 217)]))
        rig.add(make_request("c", num_prompt_tokens=80))
        plan = rig.step()  # ten blocks: four of the source, four of "b", five of "c"
        assert (plan.released, rig.shapes(plan)) == ((), [(2, 32, 17), (3, 0, 80)])
        assert plan.adopted == (Adoption(sequence_id=2, source_id=1, num_tokens=32, keeps_source=False),)
        rig.run_until_idle()

    def test_of_several_copies_the_last_takes_the_source_over(self) -> None:
        rig = start(kv_capacity_tokens=192, max_context=160, first_chunk_tokens=200)
        ask(rig, "source", [*range(32), *range(100, 120)])
        for name in "bc":
            rig.add(make_request(name, prompt=[*range(32), ord(name)]))
        rig.add(make_request("d", num_prompt_tokens=80))
        adoptions = [(a.sequence_id, a.source_id, a.keeps_source) for a in rig.step().adopted]
        assert adoptions == [(2, 1, True), (3, 1, False)]
        rig.run_until_idle()

    def preempted_before_it_began(self, prompt: Sequence[int]) -> Rig:
        """The only slot is taken; "b" is admitted with a kept beginning, and then an urgent request takes its place."""
        rig = start(max_num_sequences=2, first_chunk_tokens=16)
        ask(rig, "source", range(40))
        rig.add(make_request("busy", num_prompt_tokens=40))
        rig.step()
        rig.add(make_request("b", prompt=prompt, priority=1))
        assert rig.try_step() is None
        assert rig.scheduler.counts.num_running == 2
        rig.add(make_request("urgent"))
        assert rig.try_step() is None
        rig.answer()
        assert rig.scheduler.counts.num_preemptions == 1
        return rig

    def test_a_copy_that_is_no_longer_wanted_is_not_made(self) -> None:
        rig = self.preempted_before_it_began([*range(20), 99])
        plan = rig.step()
        assert (plan.released, plan.adopted) == ((), ())
        rig.run_until_idle()
        assert [(a.sequence_id, a.source_id) for a in rig.engine.adoptions] == [(5, 1)]

    def test_a_source_that_was_to_be_taken_over_is_released(self) -> None:
        rig = self.preempted_before_it_began([*range(40), *output_of(make_request("source", 40)), 99])
        plan = rig.step()
        assert (plan.released, plan.adopted) == ((1,), ())
        rig.run_until_idle()

    def test_one_that_ends_before_it_began_is_kept_like_any_other(self) -> None:
        rig = start(max_kept_sequences=1, first_chunk_tokens=16)
        ask(rig, "source", range(40))
        rig.add(make_request("busy", num_prompt_tokens=40))
        rig.step()
        rig.add(make_request("b", prompt=[*range(20), 99]))
        assert rig.try_step() is None
        rig.scheduler.abort("b")
        rig.answer()
        assert rig.step().adopted == (Adoption(sequence_id=3, source_id=1, num_tokens=20, keeps_source=False),)
        rig.run_until_idle()

    def test_they_travel_alone_when_nothing_can_be_computed(self) -> None:
        rig = start(num_slots=2, kv_capacity_tokens=64, max_context=64)
        ask(rig, "source", range(40))
        rig.add(make_request("b", prompt=range(40)))
        rig.try_step()
        rig.scheduler.abort("b")
        rig.run_until_idle()


class TestModes:
    def test_off_keeps_and_copies_nothing(self) -> None:
        rig = start(prefix_reuse="off")
        first = ask(rig, "a", range(40))
        ask(rig, "b", said(first))
        assert computed(rig, "b") == 43
        assert (rig.engine.adoptions, rig.engine.caches) == ([], {})

    def test_prompt_reuses_what_was_read_but_not_what_was_generated(self) -> None:
        rig = start(prefix_reuse="prompt")
        first = ask(rig, "a", range(40), max_tokens=20)
        ask(rig, "b", [*said(first), 7])
        assert computed(rig, "b") == 21
        assert [adoption.num_tokens for adoption in rig.engine.adoptions] == [40]

    def test_prompt_does_not_keep_what_was_mostly_generated(self) -> None:
        rig = start(prefix_reuse="prompt")
        ask(rig, "a", range(10), max_tokens=40)
        assert (rig.engine.caches, rig.scheduler.counts.kept_tokens) == ({}, 0)

    def test_prompt_computes_output_tokens_again_after_a_preemption(self) -> None:
        rig = start(prefix_reuse="prompt", max_num_sequences=1)
        ask(rig, "first", range(40))
        rig.add(make_request("low", prompt=range(40), max_tokens=30, priority=1))
        for _ in range(20):
            rig.round()
        rig.add(make_request("urgent", num_prompt_tokens=4))
        rig.round()
        before = rig.engine.num_computed_tokens
        rig.run_until_idle()
        assert rig.engine.num_computed_tokens - before >= 30

    def test_prompt_takes_no_ones_prompt_for_its_own_output(self) -> None:
        rig = start(prefix_reuse="prompt", max_num_sequences=1)
        low = rig.add(make_request("low", prompt=range(40), max_tokens=60, priority=1))
        for _ in range(30):
            rig.round()
        rig.add(make_request("urgent", prompt=[*low.prompt_token_ids, *output_of(low, 25), 7]))
        rig.run_until_idle()  # the same tokens, but read: of other bits than those that "low" has generated
        assert [adoption.num_tokens for adoption in rig.engine.adoptions] == [40]

    @pytest.mark.parametrize("num_top", [0, 2])
    def test_requests_for_prompt_logprobs_compute_all_of_their_prompt(self, num_top: int) -> None:
        rig = start(first_chunk_tokens=16)
        ask(rig, "a", range(40))
        ask(rig, "b", range(40), num_prompt_logprobs=num_top)
        assert computed(rig, "b") == 40
        first = next(output for output in rig.outputs if output.request_id == "b")
        assert [(entry.token_id, len(entry.top)) for entry in first.prompt_logprobs] == [
            (token, num_top) for token in range(1, 40)
        ]
        ask(rig, "c", range(40))  # but others may start from them
        assert computed(rig, "c") == 1
