"""/tokenize, /detokenize and /tokenizer_info: what they say is what the other routes do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from butterfly.api import ServedModel, create_app
from tests.unit.api.doubles import BOS, EOS, MAX_CONTEXT, ByteTokenizer, ScriptedEngine, served_model

MESSAGES = [{"role": "user", "content": "Grüße"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def _model(tokenizer: ByteTokenizer, *, with_template: bool = True) -> ServedModel:
    plain = served_model(tokenizer, with_template=with_template)
    return dataclasses.replace(plain, bos_token=BOS, eos_token=EOS)


@pytest.fixture(scope="module")
def engine(tokenizer: ByteTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer)


@pytest.fixture(scope="module")
def client(engine: ScriptedEngine) -> Iterator[TestClient]:
    with TestClient(create_app(engine, _model(engine.tokenizer))) as client:
        yield client


def _tokenized(client: TestClient, **body: object) -> dict[str, object]:
    answer = client.post("/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    content: dict[str, object] = answer.json()
    return content


# ----------------------------------------------------------------------------------------- tokenize


def test_a_text_with_and_without_special_tokens(client: TestClient, tokenizer: ByteTokenizer) -> None:
    ids = tokenizer.encode("Grüße", add_special_tokens=False)

    plain = _tokenized(client, prompt="Grüße", add_special_tokens=False)
    assert plain == {"count": 7, "max_model_len": MAX_CONTEXT, "tokens": ids, "token_strs": None}
    assert _tokenized(client, prompt="Grüße", model="tiny", unheard_of=1)["tokens"] == tokenizer.encode("Grüße")


def test_the_text_of_each_token(client: TestClient) -> None:
    answer = _tokenized(client, prompt="Gü", return_token_strs=True)

    assert answer["token_strs"] == [BOS, "G", "bytes:\\xc3", "bytes:\\xbc"]


def test_nothing_has_no_tokens(client: TestClient) -> None:
    assert _tokenized(client, prompt="", add_special_tokens=False)["tokens"] == []


def test_a_long_text(client: TestClient, tokenizer: ByteTokenizer) -> None:
    text = "Grüße " * 2_800
    answer = _tokenized(client, prompt=text, add_special_tokens=False, return_token_strs=True)

    assert answer["tokens"] == tokenizer.encode(text, add_special_tokens=False)
    assert answer["count"] == len(answer["token_strs"]) == len(text.encode())  # type: ignore[arg-type]
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [WEATHER]},
        {"chat_template_kwargs": {"style": "brief"}},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "Hello"}], "continue_final_message": True},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "Hello"}], "add_generation_prompt": False},
    ],
)
def test_messages_have_the_tokens_of_the_chat(
    client: TestClient, engine: ScriptedEngine, fields: dict[str, object]
) -> None:
    body = {"messages": MESSAGES, **fields}
    answer = _tokenized(client, **body)

    assert client.post("/v1/chat/completions", json={"model": "tiny", "max_tokens": 1, **body}).status_code == 200
    assert tuple(answer["tokens"]) == engine.submitted[-1].prompt_token_ids  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "prompt", "prompt or messages: send exactly one of them"),
        ({"prompt": "x", "messages": MESSAGES}, "prompt", "exactly one of them"),
        ({"prompt": ["x"]}, "prompt", "should be a valid string"),
        ({"prompt": "x", "add_special_tokens": 1}, "add_special_tokens", "should be a valid boolean"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
        ({"messages": MESSAGES, "tools": [WEATHER, WEATHER]}, "tools[1].function.name", "an earlier tool"),
        ({"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template", "not supported"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs", "set by the server"),
        (
            {"messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
            "cannot be combined",
        ),
    ],
)
def test_wrong_fields_are_named(client: TestClient, body: dict[str, object], param: str, says: str) -> None:
    answer = client.post("/tokenize", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["error"]["message"]


def test_another_model_is_not_here(client: TestClient) -> None:
    assert client.post("/tokenize", json={"model": "gpt", "prompt": "x"}).status_code == 404
    assert client.post("/detokenize", json={"model": "gpt", "tokens": []}).status_code == 404


# --------------------------------------------------------------------------------------- detokenize


def test_tokens_become_the_text_they_came_from(client: TestClient, tokenizer: ByteTokenizer) -> None:
    tokens = tokenizer.encode(f"Grüße{EOS}")

    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": f"{BOS}Grüße{EOS}"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("tokens", "param", "says"),
    [
        ([0, 258], "tokens", "258 is not a token id; they go from 0 to 257"),
        ([-1], "tokens[0]", "greater than or equal to 0"),
        ([10**30], "tokens", "is not a token id"),
        ([1, "2"], "tokens[1]", "valid integer"),
        ("12", "tokens", "valid array"),
        (None, "tokens", "valid array"),
    ],
)
def test_what_are_no_tokens(client: TestClient, tokens: object, param: str, says: str) -> None:
    answer = client.post("/detokenize", json={"tokens": tokens})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["error"]["message"]


def test_a_body_that_is_too_large(client: TestClient) -> None:
    assert client.post("/tokenize", content=b"[" * (16 * 1024 * 1024 + 1)).status_code == 413


# ------------------------------------------------------------------------------------ tokenizer_info


def test_what_a_remote_tokenizer_wants_to_know(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()

    assert "[assistant]" in info.pop("chat_template")
    assert info == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": 258,
        "model_max_length": MAX_CONTEXT,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
    }
    [eos_id] = client.post("/tokenize", json={"prompt": info["eos_token"], "add_special_tokens": False}).json()[
        "tokens"
    ]
    assert client.post("/detokenize", json={"tokens": [eos_id]}).json()["prompt"] == EOS


def test_a_model_without_template_and_special_tokens(tokenizer: ByteTokenizer) -> None:
    plain = served_model(tokenizer, with_template=False)
    with TestClient(create_app(ScriptedEngine(tokenizer), plain)) as client:
        info = client.get("/tokenizer_info").json()
        refused = client.post("/tokenize", json={"messages": MESSAGES})

    assert [info[name] for name in ("bos_token", "eos_token", "pad_token", "chat_template")] == [None] * 4
    assert refused.status_code == 400
    assert "has no chat template; send a prompt" in refused.json()["error"]["message"]


def test_the_routes_are_published(client: TestClient) -> None:
    document = client.get("/openapi.json").json()

    for path, method, body, answer in (
        ("/tokenize", "post", "TokenizeBody", "TokenizeAnswer"),
        ("/detokenize", "post", "DetokenizeBody", "DetokenizeAnswer"),
        ("/tokenizer_info", "get", None, "TokenizerInfo"),
    ):
        route = json.dumps(document["paths"][path][method])
        for name in (body, answer):
            if name is not None:
                assert f'"#/components/schemas/{name}"' in route
                assert name in document["components"]["schemas"]
