"""The fields that shape an output, on both endpoints: what ends it, what is shown, what is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from butterfly.api import ApiKeys, ApiServer, BoundPort, create_app
from butterfly.api.bodies import ChatBody, parse_body
from butterfly.api.prompts import chat_prompt
from butterfly.errors import InvalidRequestError
from butterfly.models.chat_template import ChatTemplate
from butterfly.specs import Request
from tests.unit.api.conftest import Service
from tests.unit.api.doubles import BOS, EOS, ByteTokenizer, Script, ScriptedEngine, served_model

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "tiny", "prompt": "x"}
Outcome = tuple[str, str]  # text and finish reason
Ask = Callable[..., Outcome]


def _events(service: Service, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = service.http.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    return [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-2]]


@pytest.fixture(params=["chat", "completion", "chat stream", "completion stream"])
def ask(request: pytest.FixtureRequest, service: Service) -> Ask:
    """Ask in each of the four ways; the outcome must be the same."""
    kind = request.param
    path, body = ("/v1/chat/completions", CHAT) if kind.startswith("chat") else ("/v1/completions", COMPLETION)

    def whole(**fields: Any) -> Outcome:
        response = service.http.post(path, json={**body, **fields})
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"], choice["finish_reason"]

    def streamed(**fields: Any) -> Outcome:
        choices = [event["choices"][0] for event in _events(service, path, {**body, **fields})]
        pieces = [choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices]
        return "".join(pieces), choices[-1]["finish_reason"]

    return streamed if kind.endswith("stream") else whole


def test_a_stop_string_may_stay(service: Service, ask: Ask) -> None:
    service.engine.script_of = lambda request: Script("one END two", tokens_per_output=4)

    assert ask(stop="END") == ("one ", "stop")
    assert ask(stop="END", include_stop_str_in_output=True) == ("one END", "stop")


def test_stop_tokens_of_the_client(service: Service, ask: Ask) -> None:
    service.engine.script_of = lambda request: Script("one; two")
    (semicolon,) = service.engine.tokenizer.encode(";", add_special_tokens=False)

    assert ask(stop_token_ids=[semicolon]) == ("one", "stop")
    assert ask(stop_token_ids=[semicolon], ignore_eos=True) == ("one", "stop")
    assert ask(stop_token_ids=[semicolon], include_stop_str_in_output=True) == ("one;", "stop")


def test_special_tokens_show_when_asked_for(service: Service, ask: Ask) -> None:
    service.engine.script_of = lambda request: Script(f"a{BOS}b")

    assert ask() == ("ab", "stop")
    assert ask(skip_special_tokens=False) == (f"a{BOS}b", "stop")
    assert ask(skip_special_tokens=False, include_stop_str_in_output=True) == (f"a{BOS}b{EOS}", "stop")


def test_nothing_ends_an_output_before_min_tokens(service: Service, ask: Ask) -> None:
    service.engine.script_of = lambda request: Script("ab;ab;ab", tokens_per_output=3)

    assert ask(stop=";", min_tokens=3, max_tokens=16) == ("ab;ab", "stop")
    assert service.engine.submitted[-1].min_tokens == 3


def test_the_limit(service: Service, ask: Ask) -> None:
    assert ask(max_tokens=3) == ("Hel", "length")


def test_add_special_tokens(service: Service, ask: Ask) -> None:
    bos = service.engine.tokenizer.encode("")[0]

    for wanted in (True, False):
        ask(add_special_tokens=wanted)
        assert (service.engine.submitted[-1].prompt_token_ids[0] == bos) is wanted


# -------------------------------------------------------------------------------------------- usage


def test_cached_tokens_count_once_per_prompt(service: Service) -> None:
    service.engine.script_of = lambda request: Script(num_cached_tokens=len(service.engine.submitted))

    usage = service.openai.completions.create(model="tiny", prompt=["a", "b"], n=2).usage

    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 1 + 3  # of the first choice of each


def test_usage_in_every_chunk(service: Service) -> None:
    service.engine.script_of = lambda request: Script(num_cached_tokens=2)
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}

    events = _events(service, "/v1/completions", {**COMPLETION, **options})

    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 4, 5, 6, 6]
    assert {event["usage"]["prompt_tokens"] for event in events} == {2}
    assert all(
        event["usage"]["total_tokens"] == event["usage"]["prompt_tokens"] + event["usage"]["completion_tokens"]
        for event in events
    )
    assert {event["usage"]["prompt_tokens_details"]["cached_tokens"] for event in events} == {2}
    assert events[-1]["choices"] == []


def test_usage_in_every_chunk_is_part_of_including_it(service: Service) -> None:
    options = {"stream_options": {"continuous_usage_stats": True}}

    assert all("usage" not in event for event in _events(service, "/v1/completions", {**COMPLETION, **options}))


# --------------------------------------------------------------------------------------- the prompt


def _prompt(service: Service) -> str:
    return service.engine.tokenizer.decode(service.engine.submitted[-1].prompt_token_ids)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "[user]Hi\n[assistant]"),
        ({"chat_template_kwargs": {"style": "terse"}}, "[style]terse\n[user]Hi\n[assistant]"),
        ({"add_generation_prompt": False}, "[user]Hi\n"),
        ({"continue_final_message": True}, "[user]Hi"),
        (
            {
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "user]Hi "}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
            "[user]Hi\n[assistant]user]Hi ",
        ),
        ({"messages": [{"role": "user", "name": "Ann", "content": "Hi"}]}, "[user]Ann: Hi\n[assistant]"),
    ],
)
def test_the_prompt_of_a_chat(service: Service, fields: dict[str, Any], prompt: str) -> None:
    assert service.http.post("/v1/chat/completions", json={**CHAT, **fields}).status_code == 200

    assert _prompt(service) == prompt


def test_a_template_that_does_not_show_the_last_message(tokenizer: ByteTokenizer) -> None:
    body = parse_body(ChatBody, json.dumps({**CHAT, "continue_final_message": True}).encode())
    template = ChatTemplate("{% for message in messages[1:] %}{{ message.content }}{% endfor %}")

    with pytest.raises(InvalidRequestError, match="does not show the last message") as caught:
        asyncio.run(chat_prompt(served_model(tokenizer), template, body, []))
    assert caught.value.param == "continue_final_message"


# ------------------------------------------------------------------------------- keys and deadlines


def test_tenant_and_timeout_come_from_the_server(tokenizer: ByteTokenizer) -> None:
    engine = ScriptedEngine(tokenizer)
    keys = ApiKeys({"ann": "a-long-key-1", "bob": "a-long-key-2"})
    app = create_app(engine, served_model(tokenizer), keys=keys, default_timeout_s=30.0)
    with (
        ApiServer(app, BoundPort("127.0.0.1", 0)) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        refused = http.post("/v1/completions", json=COMPLETION, headers={"x-request-id": "call-7"})
        for key in ("a-long-key-2", "a-long-key-1"):
            answer = http.post("/v1/completions", json=COMPLETION, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200

    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "call-7")
    assert [(request.tenant, request.timeout_s) for request in engine.submitted] == [("bob", 30.0), ("ann", 30.0)]


def test_without_keys_everybody_is_one_tenant(service: Service) -> None:
    service.http.post("/v1/completions", json={**COMPLETION, "priority": 2, "user": "ann"})

    request: Request = service.engine.submitted[0]
    assert (request.tenant, request.priority, request.timeout_s) == ("", 2, None)
