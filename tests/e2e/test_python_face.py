"""The Python face with the real model and real worker processes."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import openai
import psutil
import pytest
from pydantic import BaseModel, ConfigDict, Field

from butterfly import LLM, AsyncLLM, BatchError, Completion, Piece, SamplingParams
from butterfly.errors import (
    ContextLengthError,
    InvalidRequestError,
    LaunchError,
    ModelNotFoundError,
    NotReadyError,
    RequestTimeoutError,
)
from tests.support.product import ENDING_S, PATIENCE_S, eventually, session_members

README = Path(__file__).parents[2] / "README.md"
TINY = "random:llama,hidden=64,layers=2"
GREEDY = SamplingParams(temperature=0, max_tokens=8)
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=12)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "Rivers, mountains and lakes. " * 20 + "In short:",
    "1, 2, 3, 4,",
    "Hi",
)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("smollm2", workers=3, context=1024, progress=False) as llm:
        llm.generate("a", SamplingParams(choice=["a"]))  # starts the thread for grammars, which belongs to no test
        yield llm


@pytest.fixture(scope="module")
def async_llm() -> Iterator[AsyncLLM]:
    """Started on one event loop, used on others."""
    llm = asyncio.run(AsyncLLM.start("smollm2", workers=2, context=1024, progress=False))
    yield llm
    asyncio.run(llm.close())


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[Completion]:
    """What each prompt is answered when nobody else asks."""
    return [llm.generate(prompt, SEEDED)[0].outputs[0] for prompt in PROMPTS]


# ------------------------------------------------------------------------------------------ answers


def test_a_batch_is_answered_in_order_as_each_prompt_alone(llm: LLM, alone: list[Completion]) -> None:
    together = llm.generate(PROMPTS, SEEDED)
    assert [each.outputs for each in together] == [[output] for output in alone]
    assert [each.prompt for each in together] == list(PROMPTS)


def test_an_answer_is_sensible(llm: LLM) -> None:
    (paris,) = llm.generate(PROMPTS[0], GREEDY)
    assert "Paris" in paris.outputs[0].text
    assert paris.outputs[0].finish_reason == "length"
    assert len(paris.outputs[0].token_ids) == GREEDY.max_tokens


def test_token_ids_are_a_prompt_too(llm: LLM) -> None:
    token_ids = llm.tokenizer.encode(PROMPTS[0])
    (by_ids,), (by_text,) = llm.generate(token_ids, GREEDY), llm.generate(PROMPTS[0], GREEDY)
    assert by_ids.outputs == by_text.outputs
    assert (by_ids.prompt, by_ids.prompt_token_ids) == (None, token_ids)
    assert llm.tokenizer.decode(by_ids.outputs[0].token_ids) == by_ids.outputs[0].text


def test_a_conversation_is_answered_through_the_template(llm: LLM) -> None:
    talk = [{"role": "user", "content": "Why is the sky blue?"}]
    (answer,) = llm.chat(talk, SamplingParams(temperature=0, max_tokens=24))
    assert "sky" in answer.outputs[0].text
    assert answer.prompt is not None
    assert "<|im_start|>user\nWhy is the sky blue?<|im_end|>" in answer.prompt
    both = llm.chat([talk, talk], GREEDY)
    assert both[0].outputs == both[1].outputs


def test_every_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    short, long = llm.generate(PROMPTS[:2], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=5)])
    assert [len(each.outputs[0].token_ids) for each in (short, long)] == [2, 5]


def test_a_stop_string_ends_the_text(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, stop=["9", "7"])
    (counted,) = llm.generate(PROMPTS[3], params)
    assert counted.outputs[0].text == " 5, 6, "
    assert counted.outputs[0].finish_reason == "stop"


def test_the_first_of_several_answers_is_the_only_one_of_one(llm: LLM, alone: list[Completion]) -> None:
    (three,) = llm.generate(PROMPTS[1], SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=12, n=3))
    assert three.outputs[0] == alone[1]
    assert len({output.text for output in three.outputs}) == 3
    assert [output.index for output in three.outputs] == [0, 1, 2]


def test_the_same_seed_gives_the_same_text_over_http(llm: LLM, client: openai.OpenAI) -> None:
    (here,) = llm.generate(PROMPTS[1], SamplingParams(temperature=0.9, seed=11, max_tokens=12, n=2))
    there = client.completions.create(model="smollm2", prompt=PROMPTS[1], temperature=0.9, seed=11, max_tokens=12, n=2)
    assert [output.text for output in here.outputs] == [choice.text for choice in there.choices]


def test_logprobs_of_answers_and_prompts(llm: LLM) -> None:
    (answer,) = llm.generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1))
    (output,) = answer.outputs
    assert output.logprobs is not None
    assert answer.prompt_logprobs is not None
    assert len(output.logprobs) == len(output.token_ids) == 4
    for token_id, position in zip(output.token_ids, output.logprobs, strict=True):
        assert next(iter(position)) == token_id
        assert position[token_id].rank == 1  # greedy
        assert position[token_id].logprob == max(entry.logprob for entry in position.values()) <= 0
        assert len(position) == 2
    sampled = [position[token_id].logprob for token_id, position in zip(output.token_ids, output.logprobs, strict=True)]
    assert output.cumulative_logprob == math.fsum(sampled)
    assert answer.prompt_logprobs[0] is None
    assert [next(iter(position)) for position in answer.prompt_logprobs[1:] if position] == answer.prompt_token_ids[1:]


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=12)
    age: int


def test_an_answer_follows_its_grammar(llm: LLM) -> None:
    talk = [{"role": "user", "content": "Invent a pet. Answer in JSON."}]
    wanted = {
        "json_schema": SamplingParams(json_schema=Pet, max_tokens=60, seed=1),
        "regex": SamplingParams(regex=r"[A-Z][a-z]{2,8}: \d{1,2}", max_tokens=60, seed=1),
        "choice": SamplingParams(choice=["cat", "dog"], max_tokens=60, seed=1),
    }
    answers = llm.chat([talk] * len(wanted), list(wanted.values()))
    texts = dict(zip(wanted, (answer.outputs[0].text for answer in answers), strict=True))
    assert Pet.model_validate_json(texts["json_schema"]).name
    assert re.fullmatch(r"[A-Z][a-z]{2,8}: \d{1,2}", texts["regex"])
    assert texts["choice"] in ("cat", "dog")


# ------------------------------------------------------------------------------- errors and company


def test_a_wrong_prompt_is_named_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match=r"prompts\[1\]: it has \d{4} tokens, but the context of 1024"):
        llm.generate(["Hi", "word " * 2000], ENDLESS)
    assert eventually(lambda: is_idle(llm), ENDING_S)


def test_a_wrong_grammar_is_named_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llm.generate(["Hi", "Ho"], [ENDLESS, SamplingParams(regex="(unclosed")])
    assert caught.value.param == "regex"
    assert eventually(lambda: is_idle(llm), ENDING_S)


def test_a_prompt_that_runs_out_of_time_leaves_the_others_alone(llm: LLM) -> None:
    hasty = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, timeout_s=0.1)
    with pytest.raises(BatchError, match=r"1 of 3 prompts failed; prompts\[1\]: ") as caught:
        llm.generate(PROMPTS[:3], [GREEDY, hasty, GREEDY])
    assert isinstance(caught.value.errors[1], RequestTimeoutError)
    first, failed, last = caught.value.generations
    assert failed is None
    assert first == llm.generate(PROMPTS[0], GREEDY)[0]
    assert last is not None


def test_several_threads_share_one_llm(llm: LLM, alone: list[Completion]) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = pool.map(lambda prompt: llm.generate(prompt, SEEDED)[0].outputs[0], PROMPTS)
        assert list(together) == alone


def test_an_interrupt_ends_what_runs_and_leaves_the_llm_usable(llm: LLM) -> None:
    def interrupt() -> None:
        assert eventually(lambda: llm.status().running_requests == 2, PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    assert eventually(lambda: is_idle(llm), ENDING_S)  # what the last test left may still be shown
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Hi", "Ho"], ENDLESS)
    interrupter.join()
    assert eventually(lambda: is_idle(llm), ENDING_S)
    assert "Paris" in llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text


def is_idle(llm: LLM | AsyncLLM) -> bool:
    status = llm.status()
    return (status.running_requests, status.waiting_requests) == (0, 0)


# --------------------------------------------------------------------------------------- streaming


async def gather(llm: AsyncLLM, prompt: str, params: SamplingParams) -> list[Piece]:
    return [piece async for piece in llm.generate(prompt, params)]


def test_many_streams_at_once_say_what_the_sync_one_says(async_llm: AsyncLLM, alone: list[Completion]) -> None:
    async def all_at_once() -> list[list[Piece]]:
        return await asyncio.gather(*(gather(async_llm, prompt, SEEDED) for prompt in PROMPTS))

    for pieces, output in zip(asyncio.run(all_at_once()), alone, strict=True):
        assert len(pieces) > 3
        assert "".join(piece.text for piece in pieces) == output.text
        assert [token_id for piece in pieces for token_id in piece.token_ids] == output.token_ids
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [output.finish_reason]


def test_a_chat_with_several_answers_is_streamed(async_llm: AsyncLLM) -> None:
    async def chat() -> list[Piece]:
        talk = [{"role": "user", "content": "Hi"}]
        return [piece async for piece in async_llm.chat(talk, SamplingParams(n=2, max_tokens=6, seed=3))]

    pieces = asyncio.run(chat())
    assert {piece.index for piece in pieces} == {0, 1}
    assert sum(piece.finish_reason is not None for piece in pieces) == 2


async def leave_by_break(llm: AsyncLLM) -> None:
    async for _ in llm.generate("Count to a thousand.", ENDLESS):
        break


async def leave_by_closing(llm: AsyncLLM) -> None:
    async with aclosing(llm.generate("Count to a thousand.", ENDLESS)) as pieces:
        await anext(pieces)


async def leave_by_cancelling(llm: AsyncLLM) -> None:
    reading = asyncio.create_task(gather(llm, "Count to a thousand.", ENDLESS))
    while llm.status().running_requests == 0:
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_closing, leave_by_cancelling])
def test_leaving_the_loop_ends_the_request(async_llm: AsyncLLM, leave: Callable[[AsyncLLM], object]) -> None:
    async def leave_and_look() -> bool:
        await leave(async_llm)  # type: ignore[misc]
        return await asyncio.to_thread(eventually, lambda: is_idle(async_llm), ENDING_S)

    assert asyncio.run(leave_and_look())


def test_a_wrong_prompt_is_refused_while_others_stream(async_llm: AsyncLLM) -> None:
    async def ask() -> None:
        with pytest.raises(InvalidRequestError, match="prompt: must have at least one token"):
            await gather(async_llm, "", GREEDY)

    asyncio.run(ask())


# ------------------------------------------------------------------------------- beginning and end


def test_a_start_that_fails_leaves_nothing() -> None:
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'smollm2'\?"):
        LLM("smolm2", progress=False)
    with pytest.raises(LaunchError, match="cuda"):
        LLM(TINY, device="cuda:99", progress=False)


def test_an_llm_that_was_closed_says_so() -> None:
    with LLM(TINY, progress=False) as llm:
        assert len(llm.generate(["a", "b"], SamplingParams(max_tokens=3))) == 2
    with pytest.raises(NotReadyError, match="this LLM is closed"):
        llm.generate("a")
    llm.close()
    assert psutil.Process().children(recursive=True) == workers_of_others(llm)


def workers_of_others(llm: LLM) -> list[psutil.Process]:
    """The children that are not this LLM's: those of the fixtures."""
    own = {worker.pid for worker in llm.status().workers}
    return [child for child in psutil.Process().children(recursive=True) if child.pid not in own]


def test_an_async_llm_must_be_started_once() -> None:
    async def misuse() -> None:
        llm = AsyncLLM(TINY, progress=False)
        with pytest.raises(NotReadyError, match="not started: use `async with`"):
            await gather(llm, "a", GREEDY)
        await llm.close()

    asyncio.run(misuse())


def test_an_llm_that_nobody_holds_ends() -> None:
    llm = LLM(TINY, progress=False)
    (worker,) = llm.status().workers
    del llm
    gc.collect()
    assert eventually(lambda: not psutil.pid_exists(worker.pid), ENDING_S)


def start_program(source: str) -> subprocess.Popen[str]:
    """A Python program of its own, in a session of its own."""
    command = [sys.executable, "-c", source]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def examples() -> list[str]:
    """The programs of the README. The first never closes what it opened."""
    _, _, section = README.read_text().partition("## From Python\n")
    return re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


@pytest.mark.parametrize("source", examples(), ids=["sync, never closed", "async"])
def test_the_examples_of_the_readme_run_and_leave_nothing(source: str) -> None:
    with start_program(source) as process:
        output, complaint = process.communicate(timeout=PATIENCE_S)
    assert (complaint, process.returncode) == ("", 0)
    assert output.strip()
    assert session_members(process.pid) == []


@pytest.mark.parametrize(
    "lines",
    [
        f"from butterfly import LLM\nprint('go', flush=True)\nLLM({TINY!r})",
        "from butterfly import LLM, SamplingParams\n"
        f"llm = LLM({TINY!r})\nprint('go', flush=True)\n"
        "llm.generate('a', SamplingParams(max_tokens=None, ignore_eos=True, n=100))",
    ],
    ids=["while it starts", "while it answers"],
)
def test_ctrl_c_leaves_no_process(lines: str) -> None:
    with start_program(lines) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        os.killpg(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=PATIENCE_S)
    assert complaint.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT
    assert session_members(process.pid) == []
