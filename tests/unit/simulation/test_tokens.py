"""Simulated prompts begin alike where they should, and nowhere else."""

from __future__ import annotations

from butterfly.simulation import SimulatedRequest
from butterfly.simulation.tokens import make_request, sampled_tokens
from butterfly.specs import SequenceStep, StepPlan


def prompt(name: str, count: int, conversation: str = "", shared: int = 0) -> tuple[int, ...]:
    arrival = SimulatedRequest(
        request_id=name,
        arrival_s=0.0,
        num_prompt_tokens=count,
        max_tokens=1,
        conversation=conversation,
        num_shared_tokens=shared,
    )
    return make_request(arrival).prompt_token_ids


def test_requests_that_stand_alone_share_no_token_at_any_position() -> None:
    assert not any(a == b for a, b in zip(prompt("a", 100), prompt("b", 100), strict=True))


def test_shared_tokens_are_everybodys() -> None:
    a, b = prompt("a", 10, shared=6), prompt("b", 10, shared=8)
    assert a[:6] == b[:6]
    assert a[6:] != b[6:]
    assert prompt("c", 3, shared=8) == a[:3]


def test_a_conversation_begins_with_all_that_was_said_before() -> None:
    arrival = SimulatedRequest(
        request_id="one", arrival_s=0.0, num_prompt_tokens=5, max_tokens=2, conversation="chat", num_shared_tokens=2
    )
    first = make_request(arrival)
    said = list(first.prompt_token_ids)
    for position in (5, 6):
        part = SequenceStep(sequence_id=1, start=position - 1, num_tokens=1, prompt_length=5, sampling=first.sampling)
        (sample,) = sampled_tokens(StepPlan(step_id=1, slot=0, sequences=(part,)))
        assert (sample.sequence_id, sample.position) == (1, position)
        said.append(sample.token_id)
    assert list(prompt("two", 9, "chat", 2)[:7]) == said
    assert list(prompt("two", 9, "another chat", 2)[:7]) != said


def test_only_what_is_to_be_sampled_is_sampled() -> None:
    part = SequenceStep(sequence_id=1, start=0, num_tokens=4, prompt_length=5)
    assert sampled_tokens(StepPlan(step_id=1, slot=0, sequences=(part,))) == ()
