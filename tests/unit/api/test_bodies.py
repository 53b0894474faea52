from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from butterfly.api.bodies import MAX_BIASES, MAX_STOP_TOKENS, MAX_STOPS, ChatBody, CompletionBody, parse_body
from butterfly.api.problems import UnsupportedFieldError
from butterfly.errors import InvalidRequestError

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}}


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
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 1}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
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
        ({"stream": True, "stream_options": {"continuous_usage_stats": 1}}, "stream_options.continuous_usage_stats"),
        ({"user": 1}, "user"),
        ({"max_tokens": 2**70, "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 1.5}, "min_tokens"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1] * (MAX_STOP_TOKENS + 1)}, "stop_token_ids"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"add_special_tokens": 0}, "add_special_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"frequency_penalty": "0"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 10.5}, "repetition_penalty"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias"),
        ({"logit_bias": {"5": True}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(MAX_BIASES + 1)}}, "logit_bias"),
        ({"priority": 0.5}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "no blanks"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "{}"}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": 1}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"add_generation_prompt": 1}, "add_generation_prompt"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_grammar": []}, "guided_grammar"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _chat(**fields)

    assert caught.value.param == param
    assert param in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"add_special_tokens": "no"}, "add_special_tokens"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _completion(**fields)

    assert caught.value.param == param


@pytest.mark.parametrize(
    "prompt", [[], [1, "a"], ["a", 1], ["a", [1]], [[1], "a"], [[1], 1], [[1], [True]], {"text": "x"}, 5, None, [None]]
)
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
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"documents": [{"text": "x"}]}, "documents"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ],
)
def test_unsupported_fields_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFieldError, match="not supported") as caught:
        _chat(**fields)

    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"suffix": "x"}, "suffix"), ({"tools": [TOOL]}, "tools"), ({"top_logprobs": 2}, "top_logprobs")],
)
def test_unsupported_fields_of_completions(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFieldError, match="not supported") as caught:
        _completion(**fields)

    assert caught.value.param == param


@pytest.mark.parametrize("parse", [_chat, _completion])
def test_null_is_the_default_of_every_field(parse: Callable[..., ChatBody | CompletionBody]) -> None:
    plain = parse()
    required = {"model", "messages", "prompt"}

    assert parse(**{name: None for name in type(plain).model_fields if name not in required}) == plain


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    body = _chat(
        tools=[TOOL],
        tool_choice="none",
        response_format={"type": "text"},
        logprobs=False,
        top_logprobs=0,
        logit_bias={},
        echo=False,
        suffix=None,
        n=2,
        best_of=2,
        functions=[],
        function_call="auto",
        metadata={"unknown": "field"},
        check="a field with the name of something of ours",
    )

    assert body.num_logprobs is None
    assert body.logit_bias == {}


def test_names_of_other_servers_for_schemas() -> None:
    assert _chat(guided_json='{"type": "object"}').guided_json == {"type": "object"}


def test_tools_keep_what_was_sent() -> None:
    tool = {"function": {"parameters": {"type": "object", "a": 1}, "x": 2, "name": "f"}, "type": "function", "y": None}
    tools = _chat(tools=[tool]).tools
    assert tools is not None

    assert json.dumps(tools[0].for_template()) == json.dumps(tool)  # the order of the keys too


def test_messages_as_templates_take_them() -> None:
    calls = [CALL, {**CALL, "function": {"name": "g", "arguments": "not JSON"}}]
    body = _chat(
        messages=[
            {"role": "developer", "content": "x", "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": [{"type": "text", "text": "42"}], "tool_call_id": "call_1"},
        ]
    )

    assert [message.for_template() for message in body.messages] == [
        {"role": "system", "content": "x", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}},
                {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "not JSON"}},
            ],
        },
        {"role": "tool", "content": "42", "tool_call_id": "call_1"},
    ]


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
    for field in ("temperature", "tools", "guided_json", "logit_bias", "prompt_logprobs"):
        with pytest.raises(InvalidRequestError) as caught:
            _chat(**{field: "my secret"})

        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None
