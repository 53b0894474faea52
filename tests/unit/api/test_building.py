from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from butterfly.api import choice_seed
from butterfly.api.bodies import CompletionBody, parse_body
from butterfly.api.building import Job, completion_job
from butterfly.errors import InvalidRequestError
from tests.unit.api.doubles import ByteTokenizer, served_model


def _job(tokenizer: ByteTokenizer, **fields: Any) -> Job:
    raw = json.dumps({"model": "tiny", "prompt": [1, 2], **fields}).encode()
    return asyncio.run(completion_job(served_model(tokenizer), parse_body(CompletionBody, raw), "cmpl-1"))


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
