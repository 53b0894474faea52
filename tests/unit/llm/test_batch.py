"""Many prompts at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from butterfly.errors import (
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    RequestFailedError,
    RequestTimeoutError,
)
from butterfly.llm import BatchError, Generation, SamplingParams
from butterfly.llm.batch import Batch
from butterfly.llm.prompts import read_prompt
from butterfly.llm.requests import make_job
from tests.unit.llm.doubles import ScriptedEngine, fails, prompt_of, says, tiny_model


def run(
    engine: ScriptedEngine,
    prompts: Sequence[str],
    *,
    num_in_flight: int = 4,
    on_answer: Callable[[int], None] = lambda num_tokens: None,
    **values: Any,
) -> list[Generation]:
    model = tiny_model()
    jobs = [make_job(read_prompt("prompt", prompt, model), SamplingParams(**values), model) for prompt in prompts]
    return asyncio.run(Batch(engine, model.tokenizer, jobs, num_in_flight, on_answer).run())


def echo() -> ScriptedEngine:
    """Answers every prompt with itself, so that long ones take longer."""
    return ScriptedEngine(lambda request: says(request, prompt_of(request)))


def test_results_come_in_the_order_of_the_prompts() -> None:
    prompts = ["x" * length for length in (9, 1, 5, 2, 30, 3)]
    done = run(echo(), prompts)
    assert [each.prompt for each in done] == [each.outputs[0].text for each in done] == prompts


def test_every_prompt_has_its_answers() -> None:
    done = run(echo(), ["ab", "c"], n=3)
    assert [[output.text for output in each.outputs] for each in done] == [["ab"] * 3, ["c"] * 3]


def test_no_prompts_are_no_results() -> None:
    assert run(echo(), []) == []


@pytest.mark.parametrize("num_in_flight", [1, 3])
def test_the_engine_never_has_more_than_its_share(num_in_flight: int) -> None:
    engine = echo()
    run(engine, ["prompt"] * 10, num_in_flight=num_in_flight)
    assert (engine.most_open, len(engine.submitted)) == (num_in_flight, 10)


def test_the_most_urgent_go_first() -> None:
    engine, model = echo(), tiny_model()
    jobs = [
        make_job(read_prompt("prompt", prompt, model), SamplingParams(priority=priority), model)
        for prompt, priority in (("later", 5), ("soon", -1), ("soon too", -1))
    ]
    done = asyncio.run(Batch(engine, model.tokenizer, jobs, 1, lambda num_tokens: None).run())
    assert [prompt_of(request) for request in engine.submitted] == ["soon", "soon too", "later"]
    assert [each.prompt for each in done] == ["later", "soon", "soon too"]


def test_progress_is_told_of_every_answer() -> None:
    told: list[int] = []
    run(echo(), ["ab", "c"], n=2, on_answer=told.append)
    assert sorted(told) == [2, 2, 3, 3]  # with the end token


def test_one_failure_leaves_the_others_alone() -> None:
    engine = ScriptedEngine(
        lambda request: fails(request, "too slow", timed_out=True) if prompt_of(request) == "b" else says(request, "ok")
    )
    with pytest.raises(BatchError, match=r"1 of 3 prompts failed; prompts\[1\]: too slow") as caught:
        run(engine, ["a", "b", "c"])
    assert isinstance(caught.value, RequestFailedError)
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], RequestTimeoutError)
    assert [each and each.outputs[0].text for each in caught.value.generations] == ["ok", None, "ok"]


def test_a_cluster_that_is_lost_fails_every_prompt() -> None:
    engine = ScriptedEngine(lambda request: NotReadyError("not ready: worker-1 is lost"))
    with pytest.raises(BatchError, match=r"2 of 2 prompts failed; prompts\[0\]: not ready: worker-1"):
        run(engine, ["a", "b"])


def test_a_single_prompt_raises_its_own_error() -> None:
    engine = ScriptedEngine(lambda request: fails(request, "too slow", timed_out=True))
    with pytest.raises(RequestTimeoutError, match="too slow"):
        run(engine, ["a"])


def test_a_request_that_is_wrong_ends_the_batch_at_once() -> None:
    wrong = InvalidRequestError("regex: unbalanced bracket", "regex")
    engine = ScriptedEngine(lambda request: wrong if prompt_of(request) == "b" else says(request, "la", ends=False))
    with pytest.raises(InvalidRequestError, match="unbalanced") as caught:
        run(engine, ["a", "b", "c"], num_in_flight=2)
    assert caught.value is wrong
    assert engine.aborted == [request.request_id for request in engine.submitted]
    assert engine.num_open == 0


def test_an_overloaded_engine_is_asked_again() -> None:
    refusals = [OverloadedError("the queue is full", retry_after_s=0.0)] * 3
    engine = ScriptedEngine(lambda request: refusals.pop() if refusals else says(request, "ok"))
    assert [each.outputs[0].text for each in run(engine, ["a", "b"])] == ["ok", "ok"]


def test_an_interrupted_batch_aborts_what_runs() -> None:
    engine = ScriptedEngine(lambda request: says(request, "la", ends=False))

    async def interrupt() -> None:
        model = tiny_model()
        jobs = [make_job(read_prompt("prompt", "a", model), SamplingParams(), model) for _ in range(5)]
        running = asyncio.create_task(Batch(engine, model.tokenizer, jobs, 2, lambda num_tokens: None).run())
        while engine.num_open < 2:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    asyncio.run(interrupt())
    assert sorted(engine.aborted) == sorted(request.request_id for request in engine.submitted)
    assert engine.num_open == 0
