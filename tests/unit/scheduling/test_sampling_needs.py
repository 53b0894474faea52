"""What a step tells the stage that samples, and what comes back beside the tokens."""

from __future__ import annotations

from collections import Counter

import pytest

from butterfly.errors import RequestFailedError
from butterfly.specs import SamplingContext, SamplingSpec
from tests.unit.scheduling.fake_engine import logprobs_of
from tests.unit.scheduling.rig import Rig, make_config, make_request, output_of


def start(**options: object) -> Rig:
    return Rig(make_config(**options))


def contexts(rig: Rig) -> list[SamplingContext | None]:
    """What each sampled token of the only request came with, to its end."""
    seen = []
    while rig.scheduler.has_unfinished:
        seen += [part.context for part in rig.round().sequences if part.sampling is not None]
    return seen


def test_a_plain_request_tells_nothing() -> None:
    rig = start()
    rig.add(make_request("a", stop_token_ids=(1000,)))
    assert contexts(rig) == [None] * 3


class TestMinTokens:
    def test_stop_tokens_are_banned_until_so_many_are_out(self) -> None:
        rig = start()
        rig.add(make_request("a", max_tokens=4, stop_token_ids=(1000, 2000), min_tokens=2))
        banned = SamplingContext(banned_token_ids=(1000, 2000))
        assert contexts(rig) == [banned, banned, None, None]

    def test_the_output_may_stop_right_after(self) -> None:
        plain = make_request("a", max_tokens=9)
        first, second, third, *_ = output_of(plain)
        rig = start()
        request = rig.add(make_request("a", max_tokens=9, stop_token_ids=(first, second, third), min_tokens=2))
        rig.run_until_idle()
        assert rig.tokens("a")[-1] == third == output_of(request)[2]
        assert (rig.end("a").finish_reason, rig.end("a").num_output_tokens) == ("stop", 3)

    def test_without_stop_tokens_there_is_nothing_to_ban(self) -> None:
        rig = start()
        rig.add(make_request("a", min_tokens=2))
        assert contexts(rig) == [None] * 3


class TestPenalties:
    @pytest.mark.parametrize("sampling", [SamplingSpec(presence_penalty=0.5), SamplingSpec(frequency_penalty=-0.5)])
    def test_count_the_output_so_far(self, sampling: SamplingSpec) -> None:
        rig = start()
        request = rig.add(make_request("a", max_tokens=3, sampling=sampling))
        output = output_of(request)
        wanted = [SamplingContext(output_counts=tuple(Counter(output[:count]).items())) for count in (1, 2)]
        assert contexts(rig) == [None, *wanted]

    def test_of_repetition_know_the_prompt_too_each_token_once(self) -> None:
        rig = start()
        request = rig.add(
            make_request("a", prompt=[7, 3, 7, 3], max_tokens=2, sampling=SamplingSpec(repetition_penalty=1.1))
        )
        first = output_of(request)[0]
        assert contexts(rig) == [
            SamplingContext(prompt_token_ids=(3, 7)),
            SamplingContext(prompt_token_ids=(3, 7), output_counts=((first, 1),)),
        ]

    def test_are_counted_right_again_after_the_stages_were_replaced(self) -> None:
        rig = start()
        rig.add(make_request("a", max_tokens=12, sampling=SamplingSpec(presence_penalty=0.5)))
        for _ in range(5):
            rig.round()
        rig.step()
        rig.replace_stages()
        rig.run_until_idle()  # the engine compares each context with the output so far
        assert rig.end("a").num_output_tokens == 12


class TestPromptLogprobs:
    @pytest.mark.parametrize(("num_slots", "chunk"), [(1, 512), (1, 3), (3, 2), (3, 1)])
    def test_come_with_the_first_output_however_the_prompt_was_chunked(self, num_slots: int, chunk: int) -> None:
        rig = start(num_slots=num_slots, first_chunk_tokens=chunk)
        rig.add(make_request("a", prompt=range(50, 58), num_prompt_logprobs=1))
        rig.run_until_idle()
        assert [len(output.prompt_logprobs) for output in rig.outputs] == [7, 0, 0]
        assert rig.outputs[0].prompt_logprobs == tuple(logprobs_of(50 + place, place, 1) for place in range(1, 8))

    def test_are_scored_again_if_the_stages_die_before_the_first_output(self) -> None:
        rig = start(first_chunk_tokens=3)
        rig.add(make_request("a", prompt=range(8), num_prompt_logprobs=0))
        rig.round()
        rig.step()
        rig.replace_stages()
        rig.run_until_idle()
        assert [entry.token_id for entry in rig.outputs[0].prompt_logprobs] == list(range(1, 8))

    def test_are_not_scored_again_afterwards(self) -> None:
        rig = start()
        rig.add(make_request("a", prompt=range(8), num_prompt_logprobs=0))
        rig.round()
        rig.replace_stages()
        assert rig.step().sequences[0].scored_token_ids == ()
        rig.run_until_idle()

    def test_of_a_single_token_are_none(self) -> None:
        rig = start()
        rig.add(make_request("a", num_prompt_tokens=1, num_prompt_logprobs=3))
        rig.run_until_idle()
        assert rig.outputs[0].prompt_logprobs == ()


class CountingMatcher:
    """Allows anything, and says in its mask how many tokens it has seen; fails at the one after `limit`."""

    def __init__(self, limit: int = 1000) -> None:
        self.seen: list[int] = []
        self._limit = limit

    def mask(self) -> bytes:
        return b"%d" % len(self.seen)

    def accept(self, token_id: int) -> None:
        if len(self.seen) == self._limit:
            raise RequestFailedError("the grammar is stuck")
        self.seen.append(token_id)


class TestGrammar:
    def test_the_mask_of_each_position_travels_with_its_step(self) -> None:
        rig, matcher = start(), CountingMatcher()
        request = rig.add(make_request("a"), matcher=matcher)
        assert contexts(rig) == [SamplingContext(mask=mask) for mask in (b"0", b"1", b"2")]
        assert matcher.seen == output_of(request)

    def test_replaying_tokens_leaves_the_matcher_alone(self) -> None:
        rig, matcher = start(), CountingMatcher()
        request = rig.add(make_request("a", max_tokens=5), matcher=matcher)
        for _ in range(2):
            rig.round()
        rig.step()
        rig.replace_stages()
        (part,) = rig.step().sequences
        assert part.context == SamplingContext(mask=b"2")
        rig.run_until_idle()
        assert matcher.seen == output_of(request)

    def test_a_matcher_that_is_stuck_ends_the_request_with_its_reason(self) -> None:
        rig = start()
        rig.add(make_request("a", max_tokens=5), matcher=CountingMatcher(limit=1))
        rig.add(make_request("b", max_tokens=5))
        rig.run_until_idle()
        end = rig.end("a")
        assert (end.finish_reason, end.error, end.num_output_tokens) == ("error", "the grammar is stuck", 2)
        assert rig.end("b").finish_reason == "length"
