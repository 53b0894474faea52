"""The scheduler, story by story: steps, results, ends and failures."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.errors import ConfigError, InvalidRequestError, ProtocolError
from butterfly.specs import SampledToken, StepResult
from tests.unit.scheduling.fake_engine import logprobs_of
from tests.unit.scheduling.rig import Rig, make_config, make_request, output_of


def start(**options: object) -> Rig:
    return Rig(make_config(**options))


def test_one_request_is_prefilled_in_chunks_and_decoded_token_by_token() -> None:
    rig = start(first_chunk_tokens=3)
    request = rig.add(make_request("a", num_prompt_tokens=7, max_tokens=3))
    shapes = []
    while rig.scheduler.has_unfinished:
        (part,) = rig.round().sequences
        shapes.append((part.start, part.num_tokens, part.sampling is not None))
    assert shapes == [(0, 3, False), (3, 3, False), (6, 1, True), (7, 1, True), (8, 1, True)]
    assert rig.tokens("a") == output_of(request)
    assert [output.num_output_tokens for output in rig.outputs] == [1, 2, 3]
    assert rig.end("a").finish_reason == "length"


def test_a_stop_token_ends_with_stop_and_is_delivered() -> None:
    rig = start()
    plain = make_request("a", max_tokens=9)
    rig.add(msgspec.structs.replace(plain, stop_token_ids=(output_of(plain)[1],)))
    rig.run_until_idle()
    assert rig.tokens("a") == output_of(plain, 2)
    assert rig.end("a").finish_reason == "stop"


def test_stop_wins_over_length_when_the_last_token_is_both() -> None:
    rig = start()
    plain = make_request("a", max_tokens=2)
    rig.add(msgspec.structs.replace(plain, stop_token_ids=(output_of(plain)[1],)))
    rig.run_until_idle()
    assert rig.end("a").finish_reason == "stop"


def test_max_tokens_is_clipped_to_the_context() -> None:
    rig = start(max_context=10)
    rig.add(make_request("a", num_prompt_tokens=6, max_tokens=1000))
    rig.run_until_idle()
    assert (rig.end("a").finish_reason, rig.end("a").num_output_tokens) == ("length", 4)


def test_decode_tokens_go_first_and_prompts_take_the_rest_of_the_step() -> None:
    rig = start(max_num_batched_tokens=6)
    rig.add(make_request("a", num_prompt_tokens=2))
    rig.round()
    rig.add(make_request("b", num_prompt_tokens=9))
    assert rig.shapes(rig.step()) == [(1, 2, 1), (2, 0, 5)]


def test_prompts_share_a_chunk_by_priority_then_in_order_of_admission() -> None:
    rig = start(first_chunk_tokens=10)
    for name, priority in (("a", 0), ("b", 0), ("urgent", -1)):
        rig.add(make_request(name, num_prompt_tokens=4, priority=priority))
    assert rig.shapes(rig.round()) == [(1, 0, 4), (2, 0, 4), (3, 0, 2)]  # the urgent one was admitted first
    rig.add(make_request("more urgent", num_prompt_tokens=8, priority=-2))
    assert rig.shapes(rig.step())[2:] == [(4, 0, 8), (3, 2, 2)]


def test_a_finished_sequence_is_announced_with_the_next_step() -> None:
    rig = start(max_num_sequences=1, prefix_reuse="off")
    rig.add(make_request("a", max_tokens=1))
    rig.add(make_request("b", max_tokens=1))
    rig.round()
    plan = rig.step()
    assert (plan.released, rig.shapes(plan)) == ((1,), [(2, 0, 4)])


def test_releases_alone_travel_in_a_step_without_sequences() -> None:
    rig = start()
    rig.add(make_request("a", max_tokens=1))  # shorter than a block: not kept
    rig.round()
    assert not rig.scheduler.has_unfinished
    plan = rig.step()
    assert (plan.released, plan.sequences, rig.scheduler.is_idle) == ((1,), (), False)
    assert rig.answer() == []
    assert (rig.try_step(), rig.scheduler.is_idle) == (None, True)


def test_releases_alone_wait_while_another_step_is_in_flight() -> None:
    rig = start(num_slots=2)
    rig.add(make_request("a", max_tokens=1))
    rig.step()
    rig.add(make_request("b", max_tokens=2))
    rig.step()
    rig.answer()
    assert rig.try_step() is None
    rig.answer()
    assert rig.step().released == (1,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_slots": 0}, "num_slots must be positive, not 0"),
        ({"num_spare_slots": -1}, "num_spare_slots must be positive, not -1"),
        ({"kv_capacity_tokens": 15}, "15 tokens is smaller than one block of 16"),
        ({"target_ttft_s": 0.0}, "target_ttft_s must be positive"),
    ],
)
def test_a_config_out_of_range_is_refused_by_name(options: dict[str, object], words: str) -> None:
    config = msgspec.structs.asdict(make_config()) | options
    with pytest.raises(ConfigError, match=words):
        type(make_config())(**config)


class TestRequests:
    def test_an_id_in_use_is_refused_and_free_again_after_the_end(self) -> None:
        rig = start()
        rig.add(make_request("a"))
        with pytest.raises(InvalidRequestError, match="'a' is in use"):
            rig.add(make_request("a"))
        rig.run_until_idle()
        rig.add(make_request("a"))

    @pytest.mark.parametrize(("num_prompt", "max_tokens", "param"), [(0, 1, "prompt"), (1, 0, "max_tokens")])
    def test_malformed_ones_name_the_field(self, num_prompt: int, max_tokens: int, param: str) -> None:
        rig = start()
        with pytest.raises(InvalidRequestError) as caught:
            rig.add(make_request("a", num_prompt, max_tokens))
        assert caught.value.param == param
        assert not rig.scheduler.has_unfinished


class TestAbort:
    def test_waiting_ends_at_once_and_stages_never_hear_of_it(self) -> None:
        rig = start()
        rig.add(make_request("a"))
        rig.scheduler.abort("a")
        (output,) = rig.scheduler.drain_outputs()
        assert (output.finish_reason, output.num_output_tokens) == ("abort", 0)
        assert rig.scheduler.drain_outputs() == []
        assert (rig.try_step(), rig.scheduler.is_idle) == (None, True)

    def test_in_flight_ends_at_once_and_its_kv_is_given_up_after_the_result(self) -> None:
        rig = start()
        rig.add(make_request("a"))
        rig.step()
        rig.scheduler.abort("a")
        assert [output.finish_reason for output in rig.scheduler.drain_outputs()] == ["abort"]
        assert (rig.scheduler.counts.num_running, rig.try_step()) == (0, None)
        assert rig.answer() == []
        assert rig.step().released == (1,)

    def test_with_several_chunks_in_flight_its_kv_is_given_up_after_the_last(self) -> None:
        rig = start(num_slots=3, first_chunk_tokens=4)
        rig.add(make_request("a", num_prompt_tokens=15))
        assert len(rig.fill()) == 3
        rig.scheduler.abort("a")
        for _ in range(2):
            assert rig.answer() == []
            assert rig.try_step() is None
        assert rig.answer() == []
        assert rig.step().released == (1,)

    def test_what_it_has_computed_is_of_use_to_others(self) -> None:
        rig = start(first_chunk_tokens=20)
        rig.add(make_request("a", prompt=range(30)))
        rig.step()
        rig.scheduler.abort("a")
        rig.answer()
        rig.add(make_request("b", prompt=range(30)))
        rig.run_until_idle()
        assert rig.end("b").num_cached_tokens == 20

    def test_the_id_can_be_used_again_while_the_step_is_under_way(self) -> None:
        rig = start()
        rig.add(make_request("a"))
        rig.step()
        rig.scheduler.abort("a")
        rig.add(make_request("a"))
        rig.run_until_idle()
        assert [output.finish_reason for output in rig.outputs if output.finish_reason] == ["abort", "length"]
        assert rig.tokens("a") == output_of(make_request("a"))

    def test_of_an_unknown_or_finished_request_is_no_error(self) -> None:
        rig = start()
        rig.add(make_request("a"))
        rig.run_until_idle()
        rig.scheduler.abort("a")
        rig.scheduler.abort("never seen")
        assert rig.scheduler.drain_outputs() == []


class TestDeadlines:
    def test_a_request_that_is_late_ends_with_an_error_that_says_so(self) -> None:
        rig = start(max_num_sequences=1)
        rig.add(make_request("running", timeout_s=2.5), now_s=100.0)
        rig.add(make_request("waiting", timeout_s=2.0), now_s=100.0)
        rig.add(make_request("patient"), now_s=100.0)
        rig.round()
        assert rig.scheduler.expire(101.9) == []
        (waiting,) = rig.take(rig.scheduler.expire(102.0))
        (running,) = rig.take(rig.scheduler.expire(103.0))
        assert (waiting.request_id, waiting.finish_reason, waiting.timed_out) == ("waiting", "error", True)
        assert waiting.error == "the request did not end within 2 s (0 tokens were generated)"
        assert running.error == "the request did not end within 2.5 s (1 tokens were generated)"
        assert rig.scheduler.expire(1e9) == []
        assert rig.scheduler.drain_outputs() == []
        rig.run_until_idle()
        assert rig.ends() == ["waiting", "running", "patient"]

    def test_a_result_that_comes_too_late_is_ignored(self) -> None:
        rig = start()
        rig.add(make_request("a", timeout_s=1.0))
        rig.step()
        assert len(rig.scheduler.expire(1.0)) == 1
        assert rig.answer() == []
        assert rig.step().released == (1,)


class TestFailures:
    def test_fail_all_ends_everybody_with_the_reason_and_late_results_change_nothing(self) -> None:
        rig = start(max_num_sequences=1)
        rig.add(make_request("running"))
        rig.add(make_request("waiting"))
        plan = rig.step()
        outputs = rig.scheduler.fail_all("worker w2 is gone")
        assert {o.request_id: (o.finish_reason, o.error) for o in outputs} == {
            "running": ("error", "worker w2 is gone"),
            "waiting": ("error", "worker w2 is gone"),
        }
        rig.scheduler.check_integrity()
        late = rig.engine.answer()
        assert (late.step_id, rig.scheduler.update(late)) == (plan.step_id, [])
        assert rig.scheduler.is_idle

    def test_fail_all_forgets_what_was_kept(self) -> None:
        rig = start()
        rig.add(make_request("a", prompt=range(40)))
        rig.run_until_idle()
        assert rig.scheduler.counts.kept_tokens == 48
        assert rig.scheduler.fail_all("lost") == []
        assert rig.scheduler.counts.free_tokens == 1024
        rig.engine.restart()
        rig.add(make_request("b", prompt=range(40)))
        rig.run_until_idle()
        assert rig.end("b").num_cached_tokens == 0

    def test_requeue_keeps_tokens_and_place_and_computes_them_again(self) -> None:
        rig = start(max_num_sequences=1)
        first, second = rig.add(make_request("a")), rig.add(make_request("b"))
        rig.round()
        rig.step()
        rig.replace_stages()
        counts = rig.scheduler.counts
        assert (counts.num_running, counts.num_waiting) == (0, 2)
        plan = rig.step()
        assert (rig.shapes(plan), plan.sequences[0].prompt_length, plan.released) == ([(2, 0, 5)], 4, (1,))
        rig.run_until_idle()
        assert (rig.tokens("a"), rig.tokens("b")) == (output_of(first), output_of(second))
        assert rig.ends() == ["a", "b"]

    def test_requeue_forgets_adoptions_that_no_stage_has_heard_of(self) -> None:
        rig = start(max_num_batched_tokens=20, first_chunk_tokens=20)
        rig.add(make_request("a", prompt=range(40)))
        rig.run_until_idle()
        rig.add(make_request("long", num_prompt_tokens=100))
        rig.step()
        rig.add(make_request("b", prompt=[*range(40), 7]))
        assert rig.try_step() is None  # admitted, but the step that would tell of the adoption cannot leave yet
        rig.replace_stages()
        rig.run_until_idle()
        assert rig.engine.adoptions == []
        assert rig.tokens("b") == output_of(make_request("b", prompt=[*range(40), 7]))

    def test_replayed_output_tokens_are_not_sampled_again(self) -> None:
        rig = start(first_chunk_tokens=3)
        request = rig.add(make_request("a", 4, 5))
        for _ in range(4):  # two chunks of prompt, two tokens decoded after the first
            rig.round()
        rig.replace_stages()
        sampled = []
        for _ in range(3):
            (part,) = rig.round().sequences
            sampled.append((part.start, part.sampling is not None))
        assert sampled == [(0, False), (3, False), (6, True)]
        rig.run_until_idle()
        assert rig.tokens("a") == output_of(request)


class TestResults:
    def test_of_a_step_that_is_done_changes_nothing(self) -> None:
        rig = start()
        rig.add(make_request("a"))
        rig.step()
        result = rig.engine.answer()
        assert len(rig.scheduler.update(result)) == 1
        assert rig.scheduler.update(result) == []

    def test_of_a_step_that_was_never_sent_is_a_protocol_error(self) -> None:
        with pytest.raises(ProtocolError, match="step 7 was never sent"):
            start().scheduler.update(StepResult(step_id=7, samples=()))

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
        rig = start()
        rig.add(make_request("a", num_prompt_tokens=4))
        rig.step()
        good = rig.engine.answer()
        with pytest.raises(ProtocolError, match=r"step 1 wants samples"):
            rig.scheduler.update(msgspec.structs.replace(good, samples=samples))
        assert len(rig.scheduler.update(good)) == 1

    def test_with_wrong_scores_is_a_protocol_error_and_changes_nothing(self) -> None:
        rig = start()
        rig.add(make_request("a", num_prompt_tokens=4, num_prompt_logprobs=0))
        rig.step()
        good = rig.engine.answer()
        short = msgspec.structs.replace(good.scores[0], logprobs=good.scores[0].logprobs[:2])
        for scores in ((), (short,), good.scores * 2):
            with pytest.raises(ProtocolError, match=r"step 1 wants scores .*\[\(1, 1, 3\)\]"):
                rig.scheduler.update(msgspec.structs.replace(good, scores=scores))
        (output,) = rig.scheduler.update(good)
        assert output.prompt_logprobs == good.scores[0].logprobs


def test_logprobs_of_sampled_tokens_are_handed_on() -> None:
    rig = start()
    sampling = msgspec.structs.replace(make_request("a").sampling, num_logprobs=1)
    request = rig.add(make_request("a", max_tokens=2, sampling=sampling))
    rig.run_until_idle()
    first, second = output_of(request)
    assert [output.logprobs for output in rig.outputs] == [(logprobs_of(first, 4, 1),), (logprobs_of(second, 5, 1),)]
