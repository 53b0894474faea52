from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from butterfly.api import choice_seed
from butterfly.api.bodies import CompletionBody, parse_body
from butterfly.api.building import Call, Job, completion_job
from butterfly.errors import ContextLengthError, InvalidRequestError
from butterfly.specs import GrammarSpec, Request, SamplingSpec
from tests.unit.api.doubles import MAX_CONTEXT, ByteTokenizer, served_model


def _job(tokenizer: ByteTokenizer, *, default_timeout_s: float | None = None, **fields: Any) -> Job:
    raw = json.dumps({"model": "tiny", "prompt": [1, 2], **fields}).encode()
    call = Call(answer_id="cmpl-1", tenant="team-1", default_timeout_s=default_timeout_s)
    return asyncio.run(completion_job(served_model(tokenizer), parse_body(CompletionBody, raw), call))


def test_seeds_of_choices_are_unsigned_64_bit_and_distinct() -> None:
    seeds = [choice_seed(2**64 - 1, choice) for choice in range(128)]

    assert seeds[0] == 2**64 - 1
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert len(set(seeds)) == 128
    assert choice_seed(-1, 0) == 2**64 - 1
    assert choice_seed(0, 1) == 0x9E3779B97F4A7C15


def test_choice_zero_is_the_answer_of_a_single_choice(tokenizer: ByteTokenizer) -> None:
    alone = _job(tokenizer, seed=9).requests[0]
    among_others = _job(tokenizer, seed=9, n=4).requests[0]

    assert alone == among_others


def test_request_ids_of_a_call_are_distinct(tokenizer: ByteTokenizer) -> None:
    requests = _job(tokenizer, prompt=["a", "b"], n=3).requests

    assert len({request.request_id for request in requests}) == 6


@pytest.mark.parametrize(
    ("fields", "top_k", "top_p"),
    [
        ({}, 0, 1.0),
        ({"top_k": -1}, 0, 1.0),
        ({"top_k": 5, "top_p": 0.5}, 5, 0.5),
        ({"top_p": 0}, 1, 1.0),  # the nucleus of nothing is the most likely token
    ],
)
def test_sampling(tokenizer: ByteTokenizer, fields: dict[str, Any], top_k: int, top_p: float) -> None:
    sampling = _job(tokenizer, **fields).requests[0].sampling

    assert (sampling.top_k, sampling.top_p) == (top_k, top_p)


def test_temperature_zero_is_not_the_default(tokenizer: ByteTokenizer) -> None:
    assert _job(tokenizer, temperature=0).requests[0].sampling.temperature == 0.0


def test_choices_of_a_call_are_bounded(tokenizer: ByteTokenizer) -> None:
    assert len(_job(tokenizer, prompt=["a"] * 64, n=2).requests) == 128
    with pytest.raises(InvalidRequestError, match="more than 128 choices"):
        _job(tokenizer, prompt=["a"] * 65, n=2)


def test_a_plain_body_asks_for_nothing_special(tokenizer: ByteTokenizer) -> None:
    request = _job(tokenizer, seed=1).requests[0]

    assert request == Request(
        request_id="cmpl-1-0",
        prompt_token_ids=(1, 2),
        max_tokens=16,
        sampling=SamplingSpec(seed=1),
        stop_token_ids=(tokenizer.eos_id,),
        tenant="team-1",
    )


def test_every_field_reaches_the_engine(tokenizer: ByteTokenizer) -> None:
    job = _job(
        tokenizer,
        seed=-1,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.25,
        logit_bias={"7": -100, "08": 2.5},
        logprobs=4,
        min_tokens=2,
        max_tokens=9,
        stop_token_ids=[65],
        priority=-3,
        timeout=2.5,
        guided_regex="a+",
        stop=["x"],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )

    request = job.requests[0]
    assert request.sampling == SamplingSpec(
        seed=2**64 - 1,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.25,
        presence_penalty=1.0,
        frequency_penalty=-1.5,
        repetition_penalty=1.25,
        logit_bias=((7, -100.0), (8, 2.5)),
        num_logprobs=4,
    )
    assert (request.min_tokens, request.max_tokens) == (2, 9)
    assert request.stop_token_ids == (tokenizer.eos_id, 65)
    assert (request.priority, request.timeout_s) == (-3, 2.5)
    assert request.grammar == GrammarSpec(kind="regex", text="a+", param="guided_regex")
    assert request.num_prompt_logprobs is None  # the prompt's are only asked for with echo
    assert (job.stops, job.keeps_stop, job.skips_special_tokens) == (("x",), True, False)
    assert job.silent_token_ids == ()


@pytest.mark.parametrize(
    ("fields", "stop_token_ids"),
    [
        ({}, [257]),
        ({"ignore_eos": True}, []),
        ({"ignore_eos": True, "stop_token_ids": [65]}, [65]),
        ({"stop_token_ids": [257, 65, 65]}, [257, 65]),
        # A grammar that is complete allows nothing but the end.
        ({"ignore_eos": True, "guided_choice": ["a"]}, [257]),
    ],
)
def test_what_ends_an_output(tokenizer: ByteTokenizer, fields: dict[str, Any], stop_token_ids: list[int]) -> None:
    job = _job(tokenizer, **fields)

    assert list(job.requests[0].stop_token_ids) == stop_token_ids
    assert list(job.silent_token_ids) == stop_token_ids


@pytest.mark.parametrize(
    ("default", "asked", "expected"), [(None, None, None), (None, 3, 3), (5, None, 5), (5, 3, 3), (5, 9, 5)]
)
def test_the_shorter_timeout_counts(
    tokenizer: ByteTokenizer, default: float | None, asked: float | None, expected: float | None
) -> None:
    job = _job(tokenizer, default_timeout_s=default, timeout=asked)

    assert job.requests[0].timeout_s == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [258]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"min_tokens": 17}, "min_tokens"),  # more than the default limit
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"prompt": [1, 258]}, "prompt"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_what_only_the_model_can_tell_is_wrong(tokenizer: ByteTokenizer, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=param) as caught:
        _job(tokenizer, **{"add_special_tokens": False, **fields})

    assert caught.value.param == param


def test_special_tokens_are_added_to_texts_unless_told_not_to(tokenizer: ByteTokenizer) -> None:
    with_bos = _job(tokenizer, prompt="a").requests[0].prompt_token_ids
    without = _job(tokenizer, prompt="a", add_special_tokens=False).requests[0].prompt_token_ids

    assert with_bos == (*tokenizer.encode(""), *without)
    assert len(without) == 1


def test_only_the_prompt_asks_the_engine_for_one_token(tokenizer: ByteTokenizer) -> None:
    job = _job(tokenizer, prompt=[[1, 2, 3], [4]], echo=True, max_tokens=0, logprobs=2)

    assert [request.max_tokens for request in job.requests] == [1, 1]
    assert [request.num_prompt_logprobs for request in job.requests] == [2, 2]
    assert job.is_prompt_only
    with pytest.raises(ContextLengthError):
        _job(tokenizer, prompt=[1] * MAX_CONTEXT, echo=True, max_tokens=0)


def test_echoes_belong_to_prompts(tokenizer: ByteTokenizer) -> None:
    job = _job(tokenizer, prompt=["a", "b"], n=2, echo=True)

    assert [echo.text for index in range(4) if (echo := job.echo(index))] == ["a", "a", "b", "b"]
    assert _job(tokenizer).echo(0) is None
