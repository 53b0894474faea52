"""The scheduler, story by story."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.errors import (
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
)
from butterfly.scheduling import Scheduler
from butterfly.specs import SampledToken, StepPlan, StepResult
from tests.unit.scheduling.fake_engine import (
    FakeEngine,
    end_of,
    make_config,
    make_request,
    run_until_idle,
    token_at,
    tokens_of,
)


def start(**options: int) -> tuple[Scheduler, FakeEngine]:
    config = make_config(**options)
    return Scheduler(config), FakeEngine(config)


def next_step(scheduler: Scheduler, engine: FakeEngine) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    engine.accept(plan)
    return plan


def test_one_request_is_prefilled_in_chunks_and_decoded_token_by_token() -> None:
    scheduler, engine = start(max_num_batched_tokens=3)
    scheduler.add(make_request("a", num_prompt_tokens=7, max_tokens=3), 0.0)
    shapes, outputs = [], []
    while scheduler.has_unfinished:
        plan = next_step(scheduler, engine)
        (sequence,) = plan.sequences
        shapes.append((sequence.start, sequence.num_tokens, sequence.sampling is not None))
        outputs += scheduler.update(engine.answer(plan.step_id))
    assert shapes == [(0, 3, False), (3, 3, False), (6, 1, True), (7, 1, True), (8, 1, True)]
    assert tokens_of(outputs, "a") == [token_at(0, 7), token_at(0, 8), token_at(0, 9)]
    assert [output.num_output_tokens for output in outputs] == [1, 2, 3]
    assert end_of(outputs, "a").finish_reason == "length"


def test_a_stop_token_ends_with_stop_and_is_delivered() -> None:
    scheduler, engine = start()
    scheduler.add(make_request("a", num_prompt_tokens=4, max_tokens=9, stop=(token_at(0, 5),)), 0.0)
    outputs = run_until_idle(scheduler, engine)
    assert tokens_of(outputs, "a") == [token_at(0, 4), token_at(0, 5)]
    assert end_of(outputs, "a").finish_reason == "stop"


def test_stop_wins_over_length_when_the_last_token_is_both() -> None:
    scheduler, engine = start()
    scheduler.add(make_request("a", num_prompt_tokens=4, max_tokens=2, stop=(token_at(0, 5),)), 0.0)
    assert end_of(run_until_idle(scheduler, engine), "a").finish_reason == "stop"


def test_max_tokens_is_clipped_to_the_context() -> None:
    scheduler, engine = start(max_context=10)
    scheduler.add(make_request("a", num_prompt_tokens=6, max_tokens=1000), 0.0)
    end = end_of(run_until_idle(scheduler, engine), "a")
    assert (end.finish_reason, end.num_output_tokens) == ("length", 4)


def test_decode_tokens_go_first_and_prefill_takes_the_rest() -> None:
    scheduler, engine = start(max_num_batched_tokens=6)
    scheduler.add(make_request("a", num_prompt_tokens=2), 0.0)
    scheduler.update(engine.answer(next_step(scheduler, engine).step_id))
    scheduler.add(make_request("b", num_prompt_tokens=9), 0.0)
    plan = next_step(scheduler, engine)
    assert [(s.sequence_id, s.num_tokens) for s in plan.sequences] == [(1, 1), (2, 5)]


def test_a_burst_is_spread_over_the_slots() -> None:
    scheduler, engine = start(num_slots=3)
    for name in "abcdef":
        scheduler.add(make_request(name), 0.0)
    plans = [next_step(scheduler, engine) for _ in range(3)]
    assert scheduler.schedule() is None
    assert [plan.slot for plan in plans] == [0, 1, 2]
    assert [[s.sequence_id for s in plan.sequences] for plan in plans] == [[1, 4], [2, 5], [3, 6]]


def test_a_finished_sequence_is_announced_with_the_next_step() -> None:
    scheduler, engine = start(max_num_sequences=1)
    scheduler.add(make_request("a", max_tokens=1), 0.0)
    scheduler.add(make_request("b", max_tokens=1), 0.0)
    scheduler.update(engine.answer(next_step(scheduler, engine).step_id))
    plan = next_step(scheduler, engine)
    assert (plan.released, [s.sequence_id for s in plan.sequences]) == ((1,), [2])


def test_releases_alone_travel_in_a_step_without_sequences() -> None:
    scheduler, engine = start()
    scheduler.add(make_request("a", max_tokens=1), 0.0)
    scheduler.update(engine.answer(next_step(scheduler, engine).step_id))
    assert not scheduler.has_unfinished
    plan = next_step(scheduler, engine)
    assert (plan.released, plan.sequences) == ((1,), ())
    assert scheduler.update(engine.answer(plan.step_id)) == []
    assert scheduler.schedule() is None


def test_releases_alone_wait_while_another_step_is_in_flight() -> None:
    scheduler, engine = start(num_slots=2)
    scheduler.add(make_request("a", max_tokens=1), 0.0)
    scheduler.add(make_request("b", max_tokens=2), 0.0)
    first, second = next_step(scheduler, engine), next_step(scheduler, engine)
    scheduler.update(engine.answer(first.step_id))
    assert scheduler.schedule() is None
    scheduler.update(engine.answer(second.step_id))
    assert next_step(scheduler, engine).released == (1,)


def test_nobody_overtakes_a_request_that_does_not_fit_yet() -> None:
    scheduler, engine = start(kv_capacity_tokens=64, max_context=64)
    scheduler.add(make_request("running", 16, 16), 0.0)
    scheduler.add(make_request("large", 40, 20), 0.0)
    scheduler.add(make_request("small", 1, 1), 0.0)
    plan = next_step(scheduler, engine)
    assert (len(plan.sequences), scheduler.num_running, scheduler.num_waiting) == (1, 1, 2)
    outputs = scheduler.update(engine.answer(plan.step_id)) + run_until_idle(scheduler, engine)
    ends = [output.request_id for output in outputs if output.finish_reason]
    assert ends == ["running", "large", "small"]


class TestRefusals:
    def test_a_prompt_that_fills_the_context_is_refused_with_the_figures(self) -> None:
        scheduler, _ = start(max_context=10)
        with pytest.raises(ContextLengthError, match=r"prompt has 10 tokens.*context of 10") as caught:
            scheduler.add(make_request("a", num_prompt_tokens=10), 0.0)
        assert (caught.value.param, caught.value.request_id) == ("prompt", "a")
        scheduler.add(make_request("a", num_prompt_tokens=9), 0.0)

    def test_what_can_never_fit_the_kv_cache_is_refused_with_the_figures(self) -> None:
        scheduler, _ = start(kv_capacity_tokens=40, block_size=16)  # two whole blocks: 32 tokens
        with pytest.raises(ContextLengthError, match=r"20 \+ max_tokens 13 = 33 tokens.*of 32") as caught:
            scheduler.add(make_request("a", 20, 13), 0.0)
        assert caught.value.param == "max_tokens"
        scheduler.add(make_request("a", 20, 12), 0.0)

    def test_a_full_queue_refuses_but_an_empty_one_takes_any_prompt(self) -> None:
        scheduler, engine = start(max_waiting_tokens=10, max_num_sequences=1)
        scheduler.add(make_request("long", num_prompt_tokens=20), 0.0)
        with pytest.raises(OverloadedError, match="20 tokens wait and the queue holds 10") as caught:
            scheduler.add(make_request("b", num_prompt_tokens=1), 0.0)
        assert caught.value.retry_after_s > 0
        next_step(scheduler, engine)  # admits the long one: the queue is empty again
        scheduler.add(make_request("b", num_prompt_tokens=10), 0.0)
        with pytest.raises(OverloadedError):
            scheduler.add(make_request("c", num_prompt_tokens=1), 0.0)

    def test_an_id_in_use_is_refused_and_free_again_after_the_end(self) -> None:
        scheduler, engine = start()
        scheduler.add(make_request("a"), 0.0)
        with pytest.raises(InvalidRequestError, match="'a' is in use"):
            scheduler.add(make_request("a"), 0.0)
        run_until_idle(scheduler, engine)
        scheduler.add(make_request("a"), 0.0)

    @pytest.mark.parametrize(("num_prompt", "max_tokens", "param"), [(0, 1, "prompt"), (1, 0, "max_tokens")])
    def test_malformed_requests_name_the_field(self, num_prompt: int, max_tokens: int, param: str) -> None:
        scheduler, _ = start()
        with pytest.raises(InvalidRequestError) as caught:
            scheduler.add(make_request("a", num_prompt, max_tokens), 0.0)
        assert caught.value.param == param
        assert not scheduler.has_unfinished

    def test_a_config_of_zero_is_refused_by_name(self) -> None:
        with pytest.raises(ConfigError, match="num_slots must be positive"):
            make_config(num_slots=0)
        with pytest.raises(ConfigError, match="smaller than one block"):
            make_config(kv_capacity_tokens=15)


class TestAbort:
    def test_waiting_ends_at_once_and_stages_never_hear_of_it(self) -> None:
        scheduler, _ = start()
        scheduler.add(make_request("a"), 0.0)
        scheduler.abort("a")
        (output,) = scheduler.drain_outputs()
        assert (output.finish_reason, output.num_output_tokens) == ("abort", 0)
        assert scheduler.drain_outputs() == []
        assert (scheduler.schedule(), scheduler.has_unfinished) == (None, False)

    def test_in_flight_ends_at_once_and_its_kv_is_released_after_the_result(self) -> None:
        scheduler, engine = start()
        scheduler.add(make_request("a"), 0.0)
        plan = next_step(scheduler, engine)
        scheduler.abort("a")
        assert [output.finish_reason for output in scheduler.drain_outputs()] == ["abort"]
        assert (scheduler.num_running, scheduler.schedule()) == (0, None)
        scheduler.check_integrity()
        assert scheduler.update(engine.answer(plan.step_id)) == []
        assert next_step(scheduler, engine).released == (1,)

    def test_the_id_of_an_aborted_request_can_be_used_while_its_step_is_under_way(self) -> None:
        scheduler, engine = start()
        scheduler.add(make_request("a"), 0.0)
        next_step(scheduler, engine)
        scheduler.abort("a")
        scheduler.add(make_request("a", max_tokens=2), 0.0)
        outputs = run_until_idle(scheduler, engine)
        assert [o.finish_reason for o in outputs if o.finish_reason] == ["abort", "length"]
        assert len(tokens_of(outputs, "a")) == 2

    def test_of_an_unknown_or_finished_request_is_no_error(self) -> None:
        scheduler, engine = start()
        scheduler.add(make_request("a"), 0.0)
        run_until_idle(scheduler, engine)
        scheduler.abort("a")
        scheduler.abort("never seen")
        assert scheduler.drain_outputs() == []


class TestFailures:
    def test_fail_all_ends_everybody_with_the_reason_and_late_results_change_nothing(self) -> None:
        scheduler, engine = start(max_num_sequences=1)
        scheduler.add(make_request("running"), 0.0)
        scheduler.add(make_request("waiting"), 0.0)
        plan = next_step(scheduler, engine)
        outputs = scheduler.fail_all("worker w2 is gone")
        assert {o.request_id: (o.finish_reason, o.error) for o in outputs} == {
            "running": ("error", "worker w2 is gone"),
            "waiting": ("error", "worker w2 is gone"),
        }
        scheduler.check_integrity()
        assert scheduler.update(engine.answer(plan.step_id)) == []
        assert not scheduler.has_unfinished

    def test_fail_step_ends_only_the_requests_in_that_step(self) -> None:
        scheduler, engine = start(num_slots=2)
        scheduler.add(make_request("a"), 0.0)
        scheduler.add(make_request("b"), 0.0)
        first, _ = next_step(scheduler, engine), next_step(scheduler, engine)
        engine.in_flight.pop(first.step_id)
        (output,) = scheduler.fail_step(first.step_id, "lost")
        assert (output.request_id, output.finish_reason, output.error) == ("a", "error", "lost")
        assert scheduler.fail_step(first.step_id, "lost") == []
        assert end_of(run_until_idle(scheduler, engine), "b").finish_reason == "length"

    def test_requeue_keeps_tokens_and_place_and_computes_them_again(self) -> None:
        scheduler, engine = start(max_num_sequences=1)
        scheduler.add(make_request("a", 4, 3), 0.0)
        scheduler.add(make_request("b", 4, 3), 0.0)
        outputs = scheduler.update(engine.answer(next_step(scheduler, engine).step_id))
        next_step(scheduler, engine)
        engine.restart()
        scheduler.requeue_all()
        assert (scheduler.num_running, scheduler.num_waiting) == (0, 2)
        plan = next_step(scheduler, engine)
        (sequence,) = plan.sequences
        assert (sequence.sequence_id, sequence.start, sequence.num_tokens) == (2, 0, 5)
        assert (sequence.prompt_length, plan.released) == (4, (1,))
        outputs += scheduler.update(engine.answer(plan.step_id)) + run_until_idle(scheduler, engine)
        assert tokens_of(outputs, "a") == [token_at(0, position) for position in (4, 5, 6)]
        assert [o.request_id for o in outputs if o.finish_reason] == ["a", "b"]


class TestResults:
    def test_of_a_step_that_is_done_changes_nothing(self) -> None:
        scheduler, engine = start()
        scheduler.add(make_request("a"), 0.0)
        result = engine.answer(next_step(scheduler, engine).step_id)
        assert len(scheduler.update(result)) == 1
        assert scheduler.update(result) == []

    def test_of_a_step_that_was_never_sent_is_a_protocol_error(self) -> None:
        scheduler, _ = start()
        with pytest.raises(ProtocolError, match="step 7 was never sent"):
            scheduler.update(StepResult(step_id=7, samples=()))

    @pytest.mark.parametrize(
        "samples",
        [
            (),
            (SampledToken(sequence_id=1, position=5, token_id=0),),
            (SampledToken(sequence_id=2, position=4, token_id=0),),
            (SampledToken(sequence_id=1, position=4, token_id=0),) * 2,
        ],
        ids=["missing", "wrong position", "wrong sequence", "twice"],
    )
    def test_with_wrong_samples_is_a_protocol_error_and_changes_nothing(
        self, samples: tuple[SampledToken, ...]
    ) -> None:
        scheduler, engine = start()
        scheduler.add(make_request("a", num_prompt_tokens=4), 0.0)
        good = engine.answer(next_step(scheduler, engine).step_id)
        with pytest.raises(ProtocolError, match=r"step 1 wants samples"):
            scheduler.update(msgspec.structs.replace(good, samples=samples))
        assert len(scheduler.update(good)) == 1


def test_slots_take_turns() -> None:
    scheduler, engine = start(num_slots=2)
    for name in "ab":
        scheduler.add(make_request(name, max_tokens=5), 0.0)
    slots = []
    for _ in range(4):
        plan = next_step(scheduler, engine)
        slots.append(plan.slot)
        scheduler.update(engine.answer(plan.step_id))
    assert slots == [0, 1, 0, 1]


def test_replayed_output_tokens_are_not_sampled_again() -> None:
    scheduler, engine = start(max_num_batched_tokens=3)
    scheduler.add(make_request("a", 4, 5), 0.0)
    outputs = []
    for _ in range(4):  # two chunks of prompt, two tokens decoded after the first
        outputs += scheduler.update(engine.answer(next_step(scheduler, engine).step_id))
    engine.restart()
    scheduler.requeue_all()
    sampled = []
    for _ in range(3):
        plan = next_step(scheduler, engine)
        sampled.append((plan.sequences[0].start, plan.sequences[0].sampling is not None))
        outputs += scheduler.update(engine.answer(plan.step_id))
    assert sampled == [(0, False), (3, False), (6, True)]
    assert tokens_of(outputs, "a") == [token_at(0, position) for position in (4, 5, 6, 7)]
