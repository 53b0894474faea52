from __future__ import annotations

from typing import Any

import numpy
import pytest
from pydantic import BaseModel

from butterfly.errors import InvalidRequestError
from butterfly.llm import SamplingParams
from butterfly.specs import GrammarSpec, SamplingSpec


class Person(BaseModel):
    age: int


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"n": 0}, "n: expected int >= 1, not 0"),
        ({"n": 1.5}, "n: expected int, got float"),
        ({"n": True}, "n: expected int, got bool"),
        ({"max_tokens": 0}, "max_tokens: expected int >= 1, not 0"),
        ({"max_tokens": "ten"}, r"max_tokens: expected int | None, got str"),
        ({"min_tokens": 17}, "min_tokens: 17 is more than max_tokens=16"),
        ({"temperature": -0.1}, "temperature: expected float >= 0"),
        ({"temperature": float("nan")}, "temperature: expected float >= 0"),
        ({"temperature": float("inf")}, "temperature: inf is no number to compute with"),
        ({"top_p": 0}, "top_p: expected float > 0"),
        ({"top_p": 1.1}, "top_p: expected float <= 1.0, not 1.1"),
        ({"top_k": -2}, "top_k: expected int >= -1"),
        ({"min_p": 2}, "min_p: expected float <= 1"),
        ({"seed": 2**64}, "seed: 18446744073709551616 does not fit 64 bits"),
        ({"seed": "7"}, "seed: expected int | None, got str"),
        ({"stop": ""}, "stop: an empty string would stop"),
        ({"stop": ["a", 3]}, "stop: expected str, got int for an element"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids: expected int >= 0 for an element, not \[-1\]"),
        ({"presence_penalty": 3}, "presence_penalty: expected float <= 2"),
        ({"frequency_penalty": -3}, "frequency_penalty: expected float >= -2"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected float > 0"),
        ({"logit_bias": {"7": 1.0}}, "logit_bias: expected int, got str for a key"),
        ({"logit_bias": {7: 101}}, "logit_bias: expected float <= 100.0 for an element"),
        ({"logprobs": 21}, "logprobs: expected int <= 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs: expected int >= 0"),
        ({"json_schema": "{"}, "json_schema: the string is not JSON"),
        ({"json_schema": 3}, "json_schema: expected a dict, JSON or a pydantic model, got int"),
        ({"json_schema": {"const": {1}}}, "json_schema: it cannot be written as JSON"),
        ({"choice": []}, "choice: give at least one string"),
        ({"regex": "a", "grammar": "b"}, "grammar: an answer cannot follow regex and grammar at once"),
        ({"timeout_s": 0}, "timeout_s: expected float > 0"),
        ({"priority": "high"}, "priority: expected int, got str"),
        ({"ignore_eos": 1}, "ignore_eos: expected bool, got int"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says.replace("| None", r"\| None")) as caught:
        SamplingParams(**values)
    assert str(caught.value).startswith(f"{caught.value.param}: ")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1)  # type: ignore[call-arg]


def test_nothing_said_is_what_the_sampler_takes_as_neutral() -> None:
    assert SamplingParams().sampling_spec(seed=5) == SamplingSpec(seed=5)
    assert SamplingParams().grammar_spec() is None


def test_everything_said_reaches_the_sampler() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        repetition_penalty=1.3,
        logit_bias={9: -100, 2: 5},
        logprobs=3,
    )
    assert params.sampling_spec(seed=1) == SamplingSpec(
        seed=1,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        repetition_penalty=1.3,
        logit_bias=((2, 5.0), (9, -100.0)),
        num_logprobs=3,
    )


def test_top_k_minus_one_means_all() -> None:
    assert SamplingParams(top_k=-1).sampling_spec(seed=1).top_k == 0


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(temperature=numpy.float32(0.5), seed=numpy.int64(3), top_k=numpy.int32(4))  # type: ignore[arg-type]
    assert params == SamplingParams(temperature=0.5, seed=3, top_k=4)


@pytest.mark.parametrize(
    ("values", "grammar"),
    [
        ({"json_object": True}, GrammarSpec(kind="json_object", param="json_object")),
        ({"json_schema": {"type": "object"}}, GrammarSpec(kind="json_schema", text='{"type":"object"}')),
        ({"json_schema": ' {"type": "null"}'}, GrammarSpec(kind="json_schema", text=' {"type": "null"}')),
        ({"json_schema": {}}, GrammarSpec(kind="json_schema", text="{}")),
        ({"regex": "a+"}, GrammarSpec(kind="regex", text="a+", param="regex")),
        ({"choice": ["yes", "nö"]}, GrammarSpec(kind="choice", text='["yes","nö"]', param="choice")),
        ({"grammar": 'start: "a"'}, GrammarSpec(kind="lark", text='start: "a"', param="grammar")),
    ],
    ids=str,
)
def test_what_an_answer_must_match(values: dict[str, Any], grammar: GrammarSpec) -> None:
    found = SamplingParams(**values).grammar_spec()
    assert found is not None
    assert (found.kind, found.text, found.param) == (grammar.kind, grammar.text, next(iter(values)))


def test_a_pydantic_model_is_its_schema() -> None:
    by_class = SamplingParams(json_schema=Person).grammar_spec()
    by_hand = SamplingParams(json_schema=Person.model_json_schema()).grammar_spec()
    assert by_class == by_hand
    assert by_class is not None
    assert '"age"' in by_class.text


@pytest.mark.parametrize(("stop", "stops"), [(None, ()), ("END", ("END",)), (["a", "b"], ("a", "b")), ((), ())])
def test_stop_strings_come_alone_or_in_a_list(stop: Any, stops: tuple[str, ...]) -> None:
    assert SamplingParams(stop=stop).stops == stops
