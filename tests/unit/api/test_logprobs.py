"""Logprobs as clients get them, whole and streamed, in both formats."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.api.conftest import Service
from tests.unit.api.doubles import BOS, EOS, ByteTokenizer, Script, scored

ASK = [{"role": "user", "content": "Hi"}]
LEGACY = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def _events(service: Service, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = service.http.post(path, json={"model": "tiny", "stream": True, **body})
    assert response.status_code == 200, response.text
    events = [event.removeprefix("data: ") for event in response.text.strip().split("\n\n")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def _chat_stream(service: Service, **fields: Any) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """The text, the logprobs, and the choices of all chunks."""
    events = _events(service, "/v1/chat/completions", {"messages": ASK, "logprobs": True, **fields})
    choices = [event["choices"][0] for event in events]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    return text, [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]], choices


def test_chat(service: Service, tokenizer: ByteTokenizer) -> None:
    answer = service.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        logprobs=True,
        top_logprobs=2,
    )

    assert service.engine.submitted[0].sampling.num_logprobs == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    # What ended the answer is no part of it.
    assert [entry.token for entry in logprobs.content] == list("Hello")
    for entry in logprobs.content:
        (token_id,) = tokenizer.encode(entry.token, add_special_tokens=False)
        assert entry.logprob == scored(token_id, 2).logprob
        assert entry.bytes == list(entry.token.encode())
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob == entry.logprob


def test_chat_without_alternatives(service: Service) -> None:
    answer = service.http.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK, "logprobs": True}).json()

    assert [entry["top_logprobs"] for entry in answer["choices"][0]["logprobs"]["content"]] == [[]] * 5


def test_without_being_asked_there_are_none(service: Service) -> None:
    answer = service.http.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK}).json()
    completion = service.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"}).json()

    assert answer["choices"][0]["logprobs"] is None
    assert completion["choices"][0]["logprobs"] is None
    assert [request.sampling.num_logprobs for request in service.engine.submitted] == [None, None]


def test_an_answer_without_content_has_an_empty_list(service: Service) -> None:
    service.engine.script_of = lambda request: Script("")

    answer = service.http.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK, "logprobs": True}).json()

    assert answer["choices"][0]["logprobs"] == {"content": [], "refusal": None}


@pytest.mark.parametrize("tokens_per_output", [1, 3, 50])
@pytest.mark.parametrize("stop", [None, "END.", "never"])
def test_a_chat_stream_has_the_logprobs_of_the_whole_answer(
    service: Service, tokens_per_output: int, stop: str | None
) -> None:
    service.engine.script_of = lambda request: Script("naïve 🦋, ENd, END. more", tokens_per_output=tokens_per_output)
    fields = {"stop": stop, "top_logprobs": 3}

    text, logprobs, _ = _chat_stream(service, **fields)
    body = {"model": "tiny", "messages": ASK, "logprobs": True, **fields}
    whole = service.http.post("/v1/chat/completions", json=body).json()["choices"][0]

    assert text == whole["message"]["content"]
    assert logprobs == whole["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in logprobs).decode() == text


def test_logprobs_come_with_their_text(service: Service) -> None:
    service.engine.script_of = lambda request: Script("a🦋ENd")

    _, _, choices = _chat_stream(service, stop="END")

    told = [
        (
            choice["delta"]["content"],
            b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]).decode(),
        )
        for choice in choices
        if choice["logprobs"]
    ]
    assert told == [("a", "a"), ("🦋", "🦋"), ("ENd", "ENd")]


# -------------------------------------------------------------------------------------- completions


def _completion(service: Service, **fields: Any) -> dict[str, Any]:
    response = service.http.post("/v1/completions", json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def _joined(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The choices of chunks as one."""
    logprobs = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    return {
        "text": "".join(choice["text"] for choice in choices),
        "logprobs": {name: [entry for part in logprobs for entry in part[name]] for name in LEGACY},
    }


def test_completion(service: Service) -> None:
    answer = service.openai.completions.create(model="tiny", prompt="x", logprobs=2)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    # Every generated token, as clients that count them expect.
    assert logprobs.tokens == [*"Hello", EOS]
    assert logprobs.text_offset == [0, 1, 2, 3, 4, 5]
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logprob
        assert len(top) == 2


def test_completion_without_alternatives_has_the_token_itself(service: Service) -> None:
    logprobs = _completion(service, prompt="x", logprobs=0)["logprobs"]

    assert [list(top) for top in logprobs["top_logprobs"]] == [[token] for token in logprobs["tokens"]]


@pytest.mark.parametrize("tokens_per_output", [1, 3, 50])
@pytest.mark.parametrize("stop", [None, "END.", "never"])
@pytest.mark.parametrize("echo", [False, True])
def test_a_completion_stream_has_the_logprobs_of_the_whole_answer(
    service: Service, tokens_per_output: int, stop: str | None, echo: bool
) -> None:
    service.engine.script_of = lambda request: Script("naïve 🦋, ENd, END. more", tokens_per_output=tokens_per_output)
    fields = {"prompt": "Once é", "stop": stop, "logprobs": 3, "echo": echo, "max_tokens": 40}

    events = _events(service, "/v1/completions", fields)
    streamed = _joined([event["choices"][0] for event in events])
    whole = _completion(service, **fields)

    assert streamed == {name: whole[name] for name in streamed}
    assert whole["text"].startswith("Once é" if echo else "naïve")
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_offsets_point_at_the_text(service: Service) -> None:
    service.engine.script_of = lambda request: Script("éa")

    answer = _completion(service, prompt="xé", echo=True, logprobs=0)

    assert answer["text"] == "xééa"
    assert answer["logprobs"]["tokens"] == [
        BOS, "x", r"bytes:\xc3", r"bytes:\xa9", r"bytes:\xc3", r"bytes:\xa9", "a", EOS,
    ]  # fmt: skip
    assert answer["logprobs"]["text_offset"] == [0, 0, 1, 1, 2, 2, 3, 4]


def test_echo_alone(service: Service) -> None:
    answer = service.openai.completions.create(model="tiny", prompt=["a", "b"], n=2, echo=True)

    assert [choice.text for choice in answer.choices] == ["aHello", "aHello", "bHello", "bHello"]
    assert [choice.logprobs for choice in answer.choices] == [None] * 4
    assert {request.num_prompt_logprobs for request in service.engine.submitted} == {None}


def test_echo_of_token_ids_is_their_text(service: Service, tokenizer: ByteTokenizer) -> None:
    prompt = tokenizer.encode("né")

    assert _completion(service, prompt=prompt, echo=True)["text"] == "néHello"
    assert _completion(service, prompt=prompt, echo=True, skip_special_tokens=False)["text"] == f"{BOS}néHello"


@pytest.mark.parametrize("has_eos", [False, True])
def test_only_the_prompt_scored(service: Service, has_eos: bool) -> None:
    service.engine.script_of = lambda request: Script("" if has_eos else "x", has_eos=has_eos)

    answer = service.openai.completions.create(model="tiny", prompt="ab", echo=True, max_tokens=0, logprobs=1)

    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("ab", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == [BOS, "a", "b"]
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (0, 3)


def test_only_the_prompt_in_a_stream(service: Service) -> None:
    fields = {"prompt": "ab", "echo": True, "max_tokens": 0, "logprobs": 1}

    events = _events(service, "/v1/completions", {**fields, "stream_options": {"include_usage": True}})

    choices = [event["choices"][0] for event in events[:-1]]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("ab", None), ("", "length")]
    assert events[-1]["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("is_text", [False, True])
def test_as_lm_eval_scores_an_answer(
    service: Service, tokenizer: ByteTokenizer, is_text: bool, max_tokens: int
) -> None:
    """Sum of the logprobs of the continuation, and whether greedy decoding would have said it."""
    service.engine.script_of = lambda request: Script("")  # the end at once: its logprob must not be missing
    context, continuation = tokenizer.encode("The sky is"), tokenizer.encode(" blue", add_special_tokens=False)
    prompt = "The sky is blue" if is_text else [[*context, *continuation]]

    logprobs = _completion(
        service, prompt=prompt, echo=True, max_tokens=max_tokens, logprobs=1, temperature=0, seed=1234
    )["logprobs"]

    end = len(logprobs["tokens"]) - max_tokens
    scores = logprobs["token_logprobs"][len(context) : end]
    assert scores == [scored(token_id, 1).logprob for token_id in continuation]
    tops = logprobs["top_logprobs"][len(context) : end]
    assert all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))
