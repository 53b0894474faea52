from __future__ import annotations

import json
from typing import Any

import pytest

from butterfly.api.bodies import MAX_STOPS, ChatBody, CompletionBody, parse_body
from butterfly.api.problems import UnsupportedFieldError
from butterfly.errors import InvalidRequestError

MESSAGES = [{"role": "user", "content": "Hi"}]


def _chat(**fields: Any) -> ChatBody:
    return parse_body(ChatBody, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def _completion(**fields: Any) -> CompletionBody:
    return parse_body(CompletionBody, json.dumps({"model": "m", "prompt": "x", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * (MAX_STOPS + 1)}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"ignore_eos": "no"}, "ignore_eos"),
        ({"user": 1}, "user"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _chat(**fields)

    assert caught.value.param == param
    assert param in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", [[], [1, "a"], [[1], [True]], {"text": "x"}, 5, None, [None]])
def test_wrong_prompts(prompt: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _completion(prompt=prompt)

    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_the_four_forms_of_a_prompt(prompt: object, expected: list[Any]) -> None:
    assert _completion(prompt=prompt).prompt == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_unsupported_fields_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFieldError, match=rf"{param}.* not supported yet") as caught:
        _chat(**fields)

    assert caught.value.param == param


def test_calls_of_tools_in_the_history_are_refused() -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        _chat(messages=[*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}])

    assert caught.value.param == "messages[1].tool_calls"


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    body = _chat(
        tools=[{"type": "function"}],
        tool_choice="none",
        response_format={"type": "text"},
        logprobs=False,
        top_logprobs=0,
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=0.0,
        echo=False,
        suffix=None,
        best_of=1,
        temperature=None,
        max_tokens=None,
        stop=None,
        n=None,
        stream=False,
        stream_options=None,
        metadata={"unknown": "field"},
    )

    assert body.temperature is None


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null"])
def test_a_body_that_is_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="must be a JSON object"):
        parse_body(ChatBody, body)


def test_nan_is_no_number() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_body(CompletionBody, b'{"model": "m", "prompt": "x", "temperature": NaN}')

    assert caught.value.param == "temperature"


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"^prompt is missing$"):
        parse_body(CompletionBody, b'{"model": "m"}')


def test_values_do_not_show_in_messages() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _chat(temperature="my secret")

    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
