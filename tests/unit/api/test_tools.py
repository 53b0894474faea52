"""Tools in chats: what the model hears of them, what it must say, and how calls come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from butterfly.api.tool_calls import ToolFunction, tool_grammar
from tests.unit.api.conftest import Service
from tests.unit.api.doubles import EOS, ByteTokenizer, Script

ASK = [{"role": "user", "content": "Hi"}]
PARAMETERS: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
OTHER = {"type": "function", "function": {"name": "time"}}
FUNCTIONS = [ToolFunction("weather", None, PARAMETERS), ToolFunction("time")]
NAMED = {"type": "function", "function": {"name": "weather"}}


def _spoken(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ONE_CALL = _spoken("weather", '{"city": "Rome"}')
TWO_CALLS = f"Let me see.\n{ONE_CALL}\n{_spoken('time', '{}')}"


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ASK, "tools": [TOOL, OTHER], **fields}


def _choice(service: Service, **fields: Any) -> dict[str, Any]:
    response = service.http.post("/v1/chat/completions", json=_body(**fields))
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def _chunks(service: Service, **fields: Any) -> list[dict[str, Any]]:
    response = service.http.post("/v1/chat/completions", json=_body(stream=True, **fields))
    assert response.status_code == 200, response.text
    return [json.loads(event.removeprefix("data: "))["choices"][0] for event in response.text.split("\n\n")[:-2]]


def _prompt(service: Service, tokenizer: ByteTokenizer) -> str:
    return tokenizer.decode(service.engine.submitted[-1].prompt_token_ids)


def test_the_template_gets_the_tools_as_they_were_sent(service: Service, tokenizer: ByteTokenizer) -> None:
    _choice(service)

    first_line = _prompt(service, tokenizer).partition("\n")[0]
    assert first_line == f"[tools]{json.dumps([TOOL, OTHER])}, called in <tool_call>"
    assert service.engine.submitted[0].grammar is None


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}])
def test_tools_that_may_not_be_called_are_not_mentioned(
    service: Service, tokenizer: ByteTokenizer, fields: dict[str, Any]
) -> None:
    service.engine.script_of = lambda request: Script(ONE_CALL)

    choice = _choice(service, **fields)

    assert "[tools]" not in _prompt(service, tokenizer)
    assert choice["message"] == {"role": "assistant", "content": ONE_CALL, "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_one_call(service: Service) -> None:
    service.engine.script_of = lambda request: Script(ONE_CALL)

    choice = _choice(service)

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}


def test_several_calls_and_some_words(service: Service) -> None:
    service.engine.script_of = lambda request: Script(TWO_CALLS)

    message = _choice(service)["message"]

    assert message["content"].strip() == "Let me see."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_an_answer_without_calls_stays_an_answer(service: Service) -> None:
    choice = _choice(service)

    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_one_call_at_a_time(service: Service) -> None:
    service.engine.script_of = lambda request: Script(TWO_CALLS)

    whole = _choice(service, parallel_tool_calls=False)["message"]["tool_calls"]
    streamed = [
        chunk["delta"]["tool_calls"]
        for chunk in _chunks(service, parallel_tool_calls=False)
        if "tool_calls" in chunk["delta"]
    ]

    assert [call["function"]["name"] for call in whole] == ["weather"]
    assert {call["index"] for calls in streamed for call in calls} == {0}


def test_an_answer_that_is_cut_off_says_so(service: Service) -> None:
    service.engine.script_of = lambda request: Script(TWO_CALLS)

    assert _choice(service, max_tokens=len(TWO_CALLS) - 5)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("tool_choice", "only", "reason"), [("required", None, "tool_calls"), (NAMED, "weather", "stop")]
)
@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_that_must_come(
    service: Service, tool_choice: object, only: str | None, reason: str, parallel: bool
) -> None:
    service.engine.script_of = lambda request: Script(ONE_CALL)

    choice = _choice(service, tool_choice=tool_choice, parallel_tool_calls=parallel, ignore_eos=True)

    request = service.engine.submitted[0]
    assert request.grammar == tool_grammar(FUNCTIONS, "hermes", only=only, parallel=parallel)
    assert request.stop_token_ids  # where the grammar is complete nothing else is allowed
    assert choice["finish_reason"] == reason
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]


def test_the_real_client_puts_a_stream_together(service: Service) -> None:
    service.engine.script_of = lambda request: Script(TWO_CALLS)

    with service.openai.chat.completions.stream(**_body()) as stream:
        answer = stream.get_final_completion()

    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "").strip() == "Let me see."
    assert choice.message.tool_calls is not None
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == [("weather", {"city": "Rome"}), ("time", {})]


@pytest.mark.parametrize("tokens_per_output", [1, 7, 500])
def test_calls_in_a_stream(service: Service, tokens_per_output: int) -> None:
    service.engine.script_of = lambda request: Script(TWO_CALLS, tokens_per_output=tokens_per_output)

    chunks = _chunks(service)

    assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks).strip() == "Let me see."
    deltas = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", [])]
    for index, name in enumerate(["weather", "time"]):
        first, *rest = [delta for delta in deltas if delta["index"] == index]
        assert (first["type"], first["function"]["name"]) == ("function", name)
        assert first["id"]
        assert not any("id" in delta or "type" in delta or "name" in delta["function"] for delta in rest)
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == ["tool_calls"]


def test_logprobs_of_calls_are_not_lost(service: Service) -> None:
    service.engine.script_of = lambda request: Script(TWO_CALLS)

    whole = _choice(service, logprobs=True)["logprobs"]["content"]
    streamed = [
        entry
        for chunk in _chunks(service, logprobs=True)
        if chunk["logprobs"]
        for entry in chunk["logprobs"]["content"]
    ]

    assert "".join(entry["token"] for entry in whole) == TWO_CALLS
    assert streamed == whole


def test_special_tokens_may_mark_calls_but_the_end_stays_hidden(service: Service) -> None:
    service.engine.script_of = lambda request: Script(f"a{EOS}b", has_eos=False)

    with_tools = _choice(service, ignore_eos=True, max_tokens=3)
    shown = _choice(service, tools=None, ignore_eos=True, max_tokens=3, skip_special_tokens=False)

    assert with_tools["message"]["content"] == "ab"
    assert shown["message"]["content"] == f"a{EOS}b"


def test_calls_and_their_results_in_the_history(service: Service, tokenizer: ByteTokenizer) -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}]
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]

    _choice(service, messages=messages, tools=None)

    # Templates get an object and write it in their own way.
    expected = '[user]Hi\n[assistant]<weather>{"city": "Rome"}\n[tool](call_1) sunny\n[assistant]'
    assert _prompt(service, tokenizer) == expected


@pytest.mark.parametrize("tool_choice", [None, "auto", "required"])
def test_tools_and_another_grammar_exclude_each_other(service: Service, tool_choice: str | None) -> None:
    body = _body(tool_choice=tool_choice, response_format={"type": "json_object"})

    response = service.http.post("/v1/chat/completions", json=body)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    allowed = service.http.post("/v1/chat/completions", json={**body, "tool_choice": "none"})
    assert allowed.status_code == 200
