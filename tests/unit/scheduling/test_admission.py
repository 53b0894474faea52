"""Who runs, who waits, who makes room, and who is refused."""

from __future__ import annotations

from itertools import takewhile

import pytest

from butterfly.errors import ContextLengthError, OverloadedError
from tests.unit.scheduling.rig import Rig, make_config, make_request


def start(**options: object) -> Rig:
    return Rig(make_config(**options))


def expecting_little(**options: object) -> Rig:
    """A rig that has seen so many short answers that it expects another one, and keeps nothing."""
    rig = start(**{"prefix_reuse": "off", **options})
    for number in range(40):
        rig.add(make_request(f"short{number}", num_prompt_tokens=1, max_tokens=1))
    rig.run_until_idle()
    return rig


class TestRefusals:
    def test_a_prompt_that_fills_the_context_is_refused_with_the_figures(self) -> None:
        rig = start(max_context=10)
        with pytest.raises(ContextLengthError, match=r"prompt has 10 tokens.*context of 10") as caught:
            rig.add(make_request("a", num_prompt_tokens=10))
        assert (caught.value.param, caught.value.request_id) == ("prompt", "a")
        rig.add(make_request("b", num_prompt_tokens=9))

    def test_what_can_never_fit_the_kv_cache_is_refused_with_the_figures(self) -> None:
        rig = start(kv_capacity_tokens=40)  # two whole blocks: 32 tokens
        with pytest.raises(ContextLengthError, match=r"20 \+ max_tokens 13 = 33 tokens.*of 32") as caught:
            rig.add(make_request("a", 20, 13))
        assert caught.value.param == "max_tokens"
        with pytest.raises(ContextLengthError, match=r"32 \+ max_tokens 1 = 33 tokens") as caught:
            rig.add(make_request("b", 32, 1))
        assert caught.value.param == "prompt"
        rig.add(make_request("c", 20, 12))
        rig.run_until_idle()

    def test_a_refused_request_leaves_nothing_behind(self) -> None:
        rig = start(max_context=10)
        with pytest.raises(ContextLengthError):
            rig.add(make_request("a", num_prompt_tokens=10))
        assert (rig.scheduler.is_idle, rig.try_step()) == (True, None)


class TestOverload:
    def test_a_full_queue_refuses_but_an_empty_one_takes_any_prompt(self) -> None:
        rig = start(max_waiting_tokens=10, max_num_sequences=1, retry_after_s=7.0)
        rig.add(make_request("long", num_prompt_tokens=20))
        with pytest.raises(OverloadedError, match=r"1 requests with 20 tokens wait, and the queue takes 10") as caught:
            rig.add(make_request("b", num_prompt_tokens=1))
        assert (caught.value.retry_after_s, caught.value.request_id) == (7.0, "b")
        rig.step()  # admits the long one: the queue is empty again
        rig.add(make_request("c", num_prompt_tokens=10))
        with pytest.raises(OverloadedError):
            rig.add(make_request("d", num_prompt_tokens=1))

    def test_the_bound_and_the_advice_follow_from_the_measured_speed(self) -> None:
        rig = Rig(make_config(max_num_sequences=1, target_ttft_s=10.0), [(0.0, 1 / 8), (0.0, 1 / 16)])
        rig.add(make_request("a", num_prompt_tokens=64, max_tokens=100))
        rig.round()  # eight tokens a second on the slowest stage: 80 may wait
        rig.add(make_request("b", num_prompt_tokens=40))
        rig.add(make_request("c", num_prompt_tokens=40))
        with pytest.raises(OverloadedError, match="queue takes 80 at the speed of this cluster") as caught:
            rig.add(make_request("d", num_prompt_tokens=1))
        assert caught.value.retry_after_s == pytest.approx(10.0)
        assert "try again in 10 s" in str(caught.value)

    def test_a_fast_cluster_is_still_bound_by_the_option(self) -> None:
        rig = Rig(make_config(max_num_sequences=1, max_waiting_tokens=50), [(0.0, 1e-6)])
        rig.add(make_request("a", num_prompt_tokens=64, max_tokens=100))
        rig.round()
        rig.add(make_request("b", num_prompt_tokens=40))
        with pytest.raises(OverloadedError, match="queue takes 50") as caught:
            rig.add(make_request("c", num_prompt_tokens=40))
        assert caught.value.retry_after_s == 1.0


class TestExpectation:
    def test_a_request_waits_until_what_it_is_expected_to_need_is_free(self) -> None:
        rig = start(kv_capacity_tokens=64)
        rig.add(make_request("running", 16, 16))
        rig.add(make_request("large", 40, 20))
        rig.add(make_request("small", 1, 1))  # would fit, but nobody overtakes
        assert len(rig.round().sequences) == 1
        counts = rig.scheduler.counts
        assert (counts.num_running, counts.num_waiting) == (1, 2)
        rig.run_until_idle()
        assert rig.ends() == ["running", "large", "small"]
        assert rig.scheduler.counts.num_preemptions == 0

    def test_at_first_everybody_is_expected_to_use_all_of_a_short_limit(self) -> None:
        rig = start(kv_capacity_tokens=128)
        for name in "abc":
            rig.add(make_request(name, 16, 48))  # four blocks of eight
        rig.step()
        assert rig.scheduler.counts.num_running == 2

    def test_short_answers_make_it_bolder(self) -> None:
        rig = expecting_little(kv_capacity_tokens=128)
        for name in "abcd":
            rig.add(make_request(name, 16, 48))
        rig.step()
        assert rig.scheduler.counts.num_running == 4  # each with one block of prompt and one for what comes

    def test_a_request_alone_runs_whatever_is_expected(self) -> None:
        rig = start(kv_capacity_tokens=64)
        rig.add(make_request("a", 32, 32))
        rig.run_until_idle()
        assert rig.end("a").finish_reason == "length"

    def test_no_more_run_than_the_option_says(self) -> None:
        rig = start(max_num_sequences=3)
        for number in range(5):
            rig.add(make_request(str(number), max_tokens=9))
        assert len(rig.step().sequences) == 3


class TestPreemption:
    def test_takes_the_newest_and_its_tokens_come_back_right(self) -> None:
        rig = expecting_little(kv_capacity_tokens=96)  # six blocks
        for name in "abc":
            rig.add(make_request(name, 16, 40))  # each will fill four
        rig.rounds(lambda: rig.scheduler.counts.num_preemptions > 0)
        assert [state.request.request_id for state in rig.scheduler._waiting] == ["c"]
        rig.run_until_idle()  # which checks the tokens of all
        assert rig.ends()[-3:] == ["a", "b", "c"]

    def test_takes_the_newest_of_the_lowest_priority(self) -> None:
        rig = expecting_little(kv_capacity_tokens=96)
        for name, priority in (("first", 0), ("low", 1), ("last", 0)):
            rig.add(make_request(name, 16, 40, priority=priority))
        rig.rounds(lambda: rig.scheduler.counts.num_preemptions > 0)
        assert [state.request.request_id for state in rig.scheduler._waiting] == ["low"]
        rig.run_until_idle()

    def test_is_told_to_the_stages_before_the_room_is_used(self) -> None:
        rig = expecting_little(kv_capacity_tokens=96)
        for name in "abc":
            rig.add(make_request(name, 16, 40))
        rig.step()
        newest = max(rig.engine.caches)
        released: list[int] = []
        while not released:
            rig.answer()
            released += rig.step().released  # the engine checks that there is room
        assert released == [newest]

    def test_waits_for_what_is_in_flight(self) -> None:
        rig = expecting_little(num_slots=2, kv_capacity_tokens=96)
        for name in "abc":
            rig.add(make_request(name, 16, 40))
        rig.run_until_idle()
        assert rig.scheduler.counts.num_preemptions > 0
        assert rig.ends()[-3:] == ["a", "b", "c"]

    def test_leaves_alone_who_is_in_the_step_that_is_made(self) -> None:
        rig = expecting_little(kv_capacity_tokens=96, first_chunk_tokens=2)
        rig.add(make_request("low", 15, 40, priority=1))
        while not rig.tokens("low"):
            rig.round()
        rig.add(make_request("normal", 48, 30))
        sizes = []
        while rig.scheduler.counts.num_preemptions == 0:
            sizes.append(len(rig.round().sequences))
        assert (len(sizes) > 20, sizes[-3:]) == (
            True,
            [2, 1, 1],
        )  # "low" had a place already; then "normal" was first, and took its room
        rig.run_until_idle()

    def test_of_what_is_still_being_prefilled(self) -> None:
        rig = expecting_little(num_slots=3, kv_capacity_tokens=128, first_chunk_tokens=8, max_context=128)
        rig.add(make_request("a", 16, 100))
        for name in "bc":
            rig.add(make_request(name, 60, 30))
        rig.run_until_idle()
        assert rig.scheduler.counts.num_preemptions > 0

    def test_keeps_what_must_be_kept_of_penalties_and_limits(self) -> None:
        rig = expecting_little(kv_capacity_tokens=96)
        for name in "abc":
            sampling = make_request(name).sampling.__class__(frequency_penalty=0.5, repetition_penalty=1.25)
            rig.add(make_request(name, 16, 40, sampling=sampling, num_prompt_logprobs=0))
        rig.run_until_idle()  # the engine checks what each step says to the sampler
        assert rig.scheduler.counts.num_preemptions > 0
        assert [rig.end(name).num_output_tokens for name in "abc"] == [40] * 3


class TestPriority:
    def test_goes_before_arrival(self) -> None:
        rig = start(max_num_sequences=1)
        for name, priority in (("low", 5), ("normal", 0), ("urgent", -5), ("urgent too", -5)):
            rig.add(make_request(name, priority=priority))
        rig.run_until_idle()
        assert rig.ends() == ["urgent", "urgent too", "normal", "low"]

    def test_an_urgent_request_takes_the_place_of_the_newest_of_lower_priority(self) -> None:
        rig = start(max_num_sequences=3)
        for name, priority in (("a", 1), ("b", 1), ("c", 0)):
            rig.add(make_request(name, 4, 9, priority=priority))
        rig.round()
        rig.add(make_request("urgent", priority=-1))
        assert [part.sequence_id for part in rig.round().sequences] == [1, 2, 4]  # "c" was admitted first
        assert [state.request.request_id for state in rig.scheduler._waiting] == ["b"]
        rig.run_until_idle()
        assert rig.ends() == ["urgent", "c", "a", "b"]

    def test_nobody_is_preempted_if_that_is_not_enough(self) -> None:
        rig = start(kv_capacity_tokens=128, prefix_reuse="off")
        rig.add(make_request("equal", 16, 64))  # five blocks of eight
        rig.add(make_request("low", 16, 16, priority=1))  # two
        rig.round()
        rig.add(make_request("urgent", 32, 32))  # four
        rig.round()
        assert rig.scheduler.counts.num_preemptions == 0
        rig.run_until_idle()
        assert rig.ends()[0] == "low"

    def test_equals_do_not_preempt_each_other_to_be_admitted(self) -> None:
        rig = start(max_num_sequences=1)
        rig.add(make_request("first", max_tokens=9))
        rig.round()
        rig.add(make_request("second"))
        rig.run_until_idle()
        assert (rig.ends(), rig.scheduler.counts.num_preemptions) == (["first", "second"], 0)

    def test_who_is_preempted_for_an_urgent_one_waits_for_its_step(self) -> None:
        rig = start(num_slots=2, max_num_sequences=1)
        rig.add(make_request("low", max_tokens=9, priority=1))
        rig.step()
        rig.add(make_request("urgent"))
        assert rig.try_step() is None
        rig.answer()
        assert [part.sequence_id for part in rig.step().sequences] == [2]
        rig.run_until_idle()
        assert rig.ends() == ["urgent", "low"]

    def test_a_long_prompt_gets_no_more_chunks_when_an_urgent_request_wants_its_place(self) -> None:
        rig = start(num_slots=2, num_spare_slots=1, max_num_sequences=1, first_chunk_tokens=4)
        rig.add(make_request("low", num_prompt_tokens=200, priority=1))
        assert len(rig.fill()) == 3
        rig.add(make_request("urgent"))
        for _ in range(3):
            assert rig.try_step() is None
            rig.answer()
        assert [part.sequence_id for part in rig.step().sequences] == [2]
        rig.run_until_idle()
        assert rig.ends() == ["urgent", "low"]

    def test_a_long_prompt_goes_on_when_the_urgent_request_has_left(self) -> None:
        rig = start(num_slots=2, max_num_sequences=1, first_chunk_tokens=4)
        rig.add(make_request("low", num_prompt_tokens=200, priority=1))
        rig.fill()
        rig.add(make_request("urgent"))
        rig.answer()
        assert rig.try_step() is None
        rig.scheduler.abort("urgent")
        assert rig.shapes(rig.step()) == [(1, 8, 4)]
        rig.run_until_idle()
        assert rig.scheduler.counts.num_preemptions == 0


class TestTenants:
    def test_the_one_with_two_requests_is_not_behind_the_one_with_fifty(self) -> None:
        rig = start(max_num_sequences=4)
        for number in range(50):
            rig.add(make_request(f"many{number}", tenant="many"))
        rig.round()
        for number in range(2):
            rig.add(make_request(f"few{number}", tenant="few"))
        rig.run_until_idle()
        before = list(takewhile(lambda name: name != "few1", rig.ends()))
        assert len(before) <= 8  # those that ran already, and as many beside it

    def test_share_evenly_however_many_requests_each_has(self) -> None:
        rig = start(max_num_sequences=2)
        for number in range(40):
            rig.add(make_request(f"a{number}", tenant="a"))
        for number in range(10):
            rig.add(make_request(f"b{number}", tenant="b"))
        rig.run_until_idle()
        first = rig.ends()[:20]
        assert 8 <= sum(name.startswith("b") for name in first) <= 12

    def test_share_tokens_and_not_requests(self) -> None:
        rig = start(max_num_sequences=1)
        for number in range(30):
            rig.add(make_request(f"short{number}", num_prompt_tokens=4, max_tokens=3, tenant="short"))  # pays 10
        for number in range(10):
            rig.add(make_request(f"long{number}", num_prompt_tokens=20, max_tokens=10, tenant="long"))  # pays 40
        rig.run_until_idle()
        first = rig.ends()[:25]
        assert 19 <= sum(name.startswith("short") for name in first) <= 21

    def test_one_that_pauses_saves_nothing_up(self) -> None:
        rig = start(max_num_sequences=1)
        rig.add(make_request("early", tenant="pauses"))
        for number in range(30):
            rig.add(make_request(f"steady{number}", tenant="steady"))
        rig.rounds(lambda: len(rig.ends()) >= 15)
        for number in range(10):
            rig.add(make_request(f"back{number}", tenant="pauses"))
        rig.run_until_idle()
        after = rig.ends()[15:30]
        assert 6 <= sum(name.startswith("back") for name in after) <= 9

    def test_are_below_priorities(self) -> None:
        rig = start(max_num_sequences=1)
        rig.add(make_request("a", tenant="served"))
        rig.run_until_idle()
        rig.add(make_request("b", tenant="new", priority=1))
        rig.add(make_request("c", tenant="served"))
        rig.run_until_idle()
        assert rig.ends() == ["a", "c", "b"]

    @pytest.mark.parametrize("chunk", [64, 3])
    def test_pay_once_for_every_token_whatever_happens_to_it(self, chunk: int) -> None:
        rig = start(first_chunk_tokens=chunk, prefix_reuse="off", max_num_sequences=1)
        for name in ("a", "later"):  # a tenant is remembered while it waits
            rig.add(make_request(name, num_prompt_tokens=10, max_tokens=6, tenant="a"))
        for _ in range(5):
            rig.round()
        rig.step()
        rig.replace_stages()
        while "a" not in rig.ends():
            rig.round()
        assert rig.scheduler._served.of("a") == 10 * 1 + 6 * 2

    def test_do_not_pay_for_what_is_reused(self) -> None:
        rig = start(max_num_sequences=1)
        rig.add(make_request("first", prompt=range(40), max_tokens=1, tenant="x"))
        rig.run_until_idle()
        before = rig.scheduler._served.of("z")
        for name in ("a", "later"):
            rig.add(make_request(name, prompt=range(41), tenant="z"))
        while "a" not in rig.ends():
            rig.round()
        assert rig.scheduler._served.of("z") == before + 1 * 1 + 3 * 2


def test_an_early_request_ends_though_others_arrive_for_ever() -> None:
    rig = expecting_little(num_slots=2, num_spare_slots=1, max_num_sequences=4, kv_capacity_tokens=96)
    rig.add(make_request("early", 20, 40, tenant="early"))
    number = 0
    for _ in range(300):
        while rig.scheduler.counts.num_waiting < 6:
            number += 1
            max_tokens = 1 if number % 4 else 40
            rig.add(make_request(str(number), 8 + number % 20, max_tokens, tenant=f"t{number % 3}"))
        rig.fill()
        rig.answer()
        if "early" in rig.ends():
            break
    assert rig.end("early").finish_reason == "length"
    assert rig.scheduler.counts.num_preemptions > 0
