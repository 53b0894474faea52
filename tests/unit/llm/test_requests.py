"""From prompts and parameters to engine requests."""

from __future__ import annotations

from typing import Any

import pytest

from butterfly.api import choice_seed
from butterfly.errors import InvalidRequestError
from butterfly.llm import SamplingParams
from butterfly.llm.prompts import Prompt, read_prompt
from butterfly.llm.requests import make_job, pair_with_params
from butterfly.specs import GrammarSpec, Request
from tests.unit.llm.doubles import EOS, MAX_CONTEXT, tiny_model

HI = Prompt("prompt", "Hi", (72, 105))


def requests(**values: Any) -> tuple[Request, ...]:
    return make_job(HI, SamplingParams(**values), tiny_model()).requests


def request(**values: Any) -> Request:
    (only,) = requests(**values)
    return only


def test_a_request_carries_the_prompt_and_the_limits() -> None:
    made = request(max_tokens=9, min_tokens=2, timeout_s=1.5, priority=-3, seed=1, logprobs=2, prompt_logprobs=0)
    assert made.prompt_token_ids == (72, 105)
    assert (made.max_tokens, made.min_tokens, made.timeout_s, made.priority) == (9, 2, 1.5, -3)
    assert (made.sampling.seed, made.sampling.num_logprobs, made.num_prompt_logprobs) == (1, 2, 0)
    assert made.stop_token_ids == (EOS,)


def test_answers_differ_in_the_seeds_that_the_http_api_uses() -> None:
    made = requests(n=3, seed=-7)
    assert [each.sampling.seed for each in made] == [choice_seed(-7, index) for index in range(3)]
    assert len({each.request_id for each in made}) == 3
    assert len({each.prompt_token_ids for each in made}) == 1


def test_without_a_seed_every_prompt_draws_its_own() -> None:
    assert request().sampling.seed != request().sampling.seed
    assert request().request_id != request().request_id


def test_the_prompt_is_scored_once_however_many_answers_it_has() -> None:
    assert [each.num_prompt_logprobs for each in requests(n=3, prompt_logprobs=5)] == [5, None, None]


@pytest.mark.parametrize(("max_tokens", "granted"), [(None, MAX_CONTEXT - 2), (16, 16), (MAX_CONTEXT, MAX_CONTEXT - 2)])
def test_an_answer_ends_where_the_context_does(max_tokens: int | None, granted: int) -> None:
    assert request(max_tokens=max_tokens).max_tokens == granted


def test_the_least_length_gives_way_to_the_context_too() -> None:
    made = request(max_tokens=200, min_tokens=100)
    assert made.min_tokens == made.max_tokens == MAX_CONTEXT - 2


@pytest.mark.parametrize(
    ("values", "stop_token_ids"),
    [
        ({"stop_token_ids": [65, EOS]}, (EOS, 65)),
        ({"ignore_eos": True}, ()),
        ({"ignore_eos": True, "stop_token_ids": [65]}, (65,)),
        ({"ignore_eos": True, "regex": "a"}, (EOS,)),  # a complete answer can only end
    ],
    ids=str,
)
def test_what_ends_an_answer(values: dict[str, Any], stop_token_ids: tuple[int, ...]) -> None:
    assert request(**values).stop_token_ids == stop_token_ids


def test_every_answer_follows_the_grammar() -> None:
    grammar = GrammarSpec(kind="regex", text="a|b", param="regex")
    assert [each.grammar for each in requests(n=2, regex="a|b")] == [grammar, grammar]


@pytest.mark.parametrize("values", [{"logit_bias": {4096: 1.0}}, {"stop_token_ids": [5000]}], ids=str)
def test_tokens_that_the_model_does_not_have_are_named(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(InvalidRequestError, match=rf"{name}: \d+ is not a token id; they go from 0 to 4095") as caught:
        request(**values)
    assert caught.value.param == name


def test_parameters_are_for_all_prompts_or_one_for_each() -> None:
    cold, warm = SamplingParams(temperature=0), SamplingParams()
    assert pair_with_params(2, None) == [warm, warm]
    assert pair_with_params(2, cold) == [cold, cold]
    assert pair_with_params(2, (cold, warm)) == [cold, warm]
    with pytest.raises(InvalidRequestError, match="sampling_params: 1 of them for 2 prompts"):
        pair_with_params(2, [cold])
    with pytest.raises(InvalidRequestError, match=r"sampling_params\[1\]: expected SamplingParams, got dict"):
        pair_with_params(2, [cold, {}])  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match=r"sampling_params: expected SamplingParams, or .*, got dict"):
        pair_with_params(2, {"n": 2})  # type: ignore[arg-type]


def test_the_context_holds_the_prompt_and_one_token_more() -> None:
    longest = read_prompt("prompt", "x" * (MAX_CONTEXT - 1), tiny_model())
    assert make_job(longest, SamplingParams(max_tokens=None), tiny_model()).requests[0].max_tokens == 1
