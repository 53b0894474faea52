"""The pieces of answers: what they hold, and what happens to a request that nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from butterfly.errors import InvalidRequestError, RequestFailedError, RequestTimeoutError
from butterfly.llm import Completion, Logprob, Piece, SamplingParams
from butterfly.llm.answers import Answer, generation, side_by_side
from butterfly.llm.prompts import read_prompt
from butterfly.llm.requests import Job, make_job
from tests.unit.llm.doubles import EOS, ScriptedEngine, fails, says, tiny_model


def job_of(**values: Any) -> Job:
    return make_job(read_prompt("prompt", "Hi!", tiny_model()), SamplingParams(**values), tiny_model())


def answers_of(job: Job) -> list[Answer]:
    return [Answer(job, index, tiny_model().tokenizer) for index in range(len(job.requests))]


async def read(answer: Answer, engine: ScriptedEngine) -> list[Piece]:
    return [piece async for piece in answer.pieces(engine)]


def complete(engine: ScriptedEngine, **values: Any) -> Completion:
    """The whole of one answer."""
    (answer,) = answers_of(job_of(**values))
    pieces = asyncio.run(read(answer, engine))
    completion = answer.completion()
    assert "".join(piece.text for piece in pieces) == completion.text
    assert [token for piece in pieces for token in piece.token_ids] == completion.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [completion.finish_reason]
    return completion


def test_an_answer_comes_in_pieces_and_whole() -> None:
    engine = ScriptedEngine(lambda request: says(request, "Grüße"))
    completion = complete(engine)
    assert completion.text == "Grüße"
    assert completion.token_ids == [*"Grüße".encode(), EOS]
    assert (completion.finish_reason, completion.logprobs, completion.cumulative_logprob) == ("stop", None, None)
    assert engine.aborted == []


@pytest.mark.parametrize("tokens_per_output", [1, 3, 50])
@pytest.mark.parametrize(("keeps", "text"), [(False, "abc"), (True, "abcEND")])
def test_a_stop_string_ends_an_answer_and_its_request(keeps: bool, text: str, tokens_per_output: int) -> None:
    engine = ScriptedEngine(lambda request: says(request, "abcENDdef", tokens_per_output=tokens_per_output))
    completion = complete(engine, stop=["xyz", "END"], include_stop_str_in_output=keeps)
    assert completion.text == text
    assert bytes(completion.token_ids) == b"abcEND"  # what was sampled behind it does not count
    assert completion.finish_reason == "stop"
    if tokens_per_output < 50:
        assert engine.aborted == [engine.submitted[0].request_id]
    assert engine.num_open == 0


def test_a_stop_token_is_no_text_unless_asked_for() -> None:
    engine = ScriptedEngine(lambda request: says(request, "Hi"))
    assert complete(engine).text == "Hi"
    assert complete(engine, include_stop_str_in_output=True).text == "Hi<300>"


def test_logprobs_belong_to_the_tokens() -> None:
    engine = ScriptedEngine(lambda request: says(request, "bEND", tokens_per_output=10))
    completion = complete(engine, logprobs=2, stop="END")
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids) == 4
    assert completion.logprobs[0] == {98: Logprob(-0.5, 2, "b"), 65: Logprob(-0.25, 1, "A")}
    assert completion.cumulative_logprob == pytest.approx(-2.0)


def test_the_prompt_is_scored_from_its_second_token_on() -> None:
    engine = ScriptedEngine(lambda request: says(request, "x", num_cached_tokens=2))
    job = job_of(n=2, prompt_logprobs=0)
    answers = answers_of(job)
    for answer in answers:
        asyncio.run(read(answer, engine))
    done = generation(job, answers)
    assert done.prompt_logprobs == [None, {105: Logprob(-1.0, None, "i")}, {33: Logprob(-1.0, None, "!")}]
    assert (done.prompt, done.prompt_token_ids, done.num_cached_tokens) == ("Hi!", [72, 105, 33], 2)
    assert [output.index for output in done.outputs] == [0, 1]


def test_what_nobody_asked_for_is_none() -> None:
    engine = ScriptedEngine(lambda request: says(request, "x"))
    job = job_of()
    answers = answers_of(job)
    asyncio.run(read(answers[0], engine))
    assert generation(job, answers).prompt_logprobs is None


@pytest.mark.parametrize(("timed_out", "kind"), [(False, RequestFailedError), (True, RequestTimeoutError)])
def test_a_request_that_fails_says_why(timed_out: bool, kind: type[RequestFailedError]) -> None:
    engine = ScriptedEngine(lambda request: fails(request, "worker-1 is lost", timed_out=timed_out))
    with pytest.raises(RequestFailedError, match="worker-1 is lost") as caught:
        complete(engine)
    assert type(caught.value) is kind


def test_leaving_early_aborts_the_request() -> None:
    engine = ScriptedEngine(lambda request: says(request, "la", ends=False))

    async def read_one() -> None:
        (answer,) = answers_of(job_of())
        async with aclosing(answer.pieces(engine)) as pieces:
            async for _ in pieces:
                break

    asyncio.run(read_one())
    assert engine.aborted == [engine.submitted[0].request_id]
    assert engine.num_open == 0


def test_a_cancelled_reader_aborts_the_request() -> None:
    engine = ScriptedEngine(lambda request: says(request, "la", ends=False))

    async def cancel() -> None:
        reading = asyncio.create_task(read(answers_of(job_of())[0], engine))
        while not engine.num_open:
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])

    asyncio.run(cancel())
    assert engine.aborted == [engine.submitted[0].request_id]
    assert engine.num_open == 0


def test_answers_side_by_side_are_mixed() -> None:
    engine = ScriptedEngine(lambda request: says(request, "abcd"))

    async def read_all() -> list[Piece]:
        streams = [answer.pieces(engine) for answer in answers_of(job_of(n=2))]
        return [piece async for piece in side_by_side(streams)]

    pieces = asyncio.run(read_all())
    assert {piece.index for piece in pieces[:4]} == {0, 1}  # neither waits for the other
    for index in (0, 1):
        assert "".join(piece.text for piece in pieces if piece.index == index) == "abcd"


def test_leaving_answers_side_by_side_aborts_all() -> None:
    engine = ScriptedEngine(lambda request: says(request, "la", ends=False))

    async def read_one() -> None:
        streams = [answer.pieces(engine) for answer in answers_of(job_of(n=3))]
        async with aclosing(side_by_side(streams)) as pieces:
            async for piece in pieces:
                if piece.index == 2:
                    break

    asyncio.run(read_one())
    assert sorted(engine.aborted) == sorted(request.request_id for request in engine.submitted)
    assert (len(engine.aborted), engine.num_open) == (3, 0)


def test_one_failure_side_by_side_ends_all() -> None:
    refused = InvalidRequestError("regex: it is too clever", "regex")
    engine = ScriptedEngine(
        lambda request: refused if request.request_id.endswith("-1") else says(request, "la", ends=False)
    )

    async def read_all() -> None:
        streams: list[AsyncGenerator[Piece, None]] = [answer.pieces(engine) for answer in answers_of(job_of(n=2))]
        async for _ in side_by_side(streams):
            pass

    with pytest.raises(InvalidRequestError, match="too clever"):
        asyncio.run(read_all())
    assert engine.aborted == [engine.submitted[0].request_id]
    assert engine.num_open == 0
