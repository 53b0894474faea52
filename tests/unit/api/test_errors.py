"""What goes wrong, as clients see it: OpenAI error bodies, no tracebacks, nothing left running."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import openai
import pytest

from butterfly.errors import (
    ButterflyError,
    ContextLengthError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    PeerLostError,
)
from butterfly.specs import Request
from tests.unit.api.conftest import Service
from tests.unit.api.doubles import MAX_CONTEXT, Script

CHAT = {"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}]}


def _error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert "Traceback" not in response.text
    return error


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": "\\ud800"}', b"\xff\xfe", b"[" * 100_000])
def test_malformed_json(service: Service, content: bytes) -> None:
    error = _error(service.http.post("/v1/chat/completions", content=content), 400)

    assert error["message"].startswith("the body is not JSON")


def test_a_wrong_type_names_its_field(service: Service) -> None:
    error = _error(service.http.post("/v1/chat/completions", json={**CHAT, "temperature": "hot"}), 400)

    assert error["param"] == "temperature"


def test_an_unknown_model_is_not_found(service: Service) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        service.openai.completions.create(model="gpt-17", prompt="x")

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "org/tiny" in caught.value.message


def test_an_unsupported_field_is_refused_by_name(service: Service) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        service.openai.completions.create(model="tiny", prompt="a", suffix="b")

    assert caught.value.param == "suffix"
    assert caught.value.code == "unsupported_parameter"
    assert "suffix is not supported" in caught.value.message


def test_the_template_may_refuse(service: Service) -> None:
    messages = [{"role": "assistant", "content": "Hi"}]
    error = _error(service.http.post("/v1/chat/completions", json={**CHAT, "messages": messages}), 400)

    assert error["param"] == "messages"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "figures"),
    [
        ([1] * MAX_CONTEXT, None, (f"{MAX_CONTEXT} tokens",)),
        ([1] * (MAX_CONTEXT - 50), 51, (f"{MAX_CONTEXT - 50} tokens", f"{MAX_CONTEXT + 1}", "at most 50")),
    ],
)
def test_too_long_for_the_context(
    service: Service, prompt: list[int], max_tokens: int | None, figures: tuple[str, ...]
) -> None:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens}
    error = _error(service.http.post("/v1/completions", json=body), 400)

    assert error["code"] == "context_length_exceeded"
    assert all(figure in error["message"] for figure in figures)


@pytest.mark.parametrize("prompt", [[0, -1], [[0], [258]], [[]]])
def test_token_ids_outside_the_vocabulary(service: Service, prompt: list[Any]) -> None:
    error = _error(service.http.post("/v1/completions", json={"model": "tiny", "prompt": prompt}), 400)

    assert error["param"] == "prompt"


def test_nothing_there_and_wrong_method(service: Service) -> None:
    assert "/v1/nothing" in _error(service.http.get("/v1/nothing"), 404)["message"]

    response = service.http.get("/v1/completions")
    assert "GET" in _error(response, 405)["message"]
    assert response.headers["allow"] == "POST"


def test_a_body_beyond_the_limit(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("butterfly.api.endpoints.MAX_BODY_BYTES", 1000)

    error = _error(service.http.post("/v1/completions", content=b"x" * 1001), 413)

    assert "1000 bytes" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (OverloadedError("the queue is full", retry_after_s=1.2), 503, "overloaded"),
        (NotReadyError("2 of 3 stages are loaded"), 503, "not_ready"),
        (ContextLengthError("needs 190 tokens of KV cache, 64 fit"), 400, "context_length_exceeded"),
        (InvalidRequestError("no", "seed"), 400, None),
        (PeerLostError("worker-1 is gone", "worker-1"), 500, "internal_error"),
    ],
)
def test_refusals_of_the_engine_come_before_any_byte(
    service: Service, refusal: ButterflyError, status: int, code: str | None, stream: bool
) -> None:
    service.engine.refusal = lambda request: refusal

    response = service.http.post("/v1/chat/completions", json={**CHAT, "stream": stream})

    error = _error(response, status)
    assert (error["message"], error["code"]) == (str(refusal), code)
    assert response.headers.get("retry-after") == ("2" if code == "overloaded" else None)


def test_a_refused_choice_aborts_the_ones_before(service: Service) -> None:
    service.engine.script_of = lambda request: Script(pause_after=0)
    service.engine.refusal = lambda request: (
        OverloadedError("full", retry_after_s=1) if len(service.engine.submitted) == 2 else None
    )

    _error(service.http.post("/v1/chat/completions", json={**CHAT, "n": 3}), 503)

    submitted = {request.request_id for request in service.engine.submitted}
    assert len(submitted) == 2
    assert set(service.engine.aborted) >= submitted


@pytest.mark.parametrize("failure", ["error", "abort"])
def test_a_request_that_fails_is_a_500(service: Service, failure: Any) -> None:
    service.engine.script_of = lambda request: Script(fail_after=2, failure=failure)

    error = _error(service.http.post("/v1/chat/completions", json=CHAT), 500)

    assert error["code"] == "request_failed"
    assert "worker-1 was lost" in error["message"]


def test_a_request_that_runs_out_of_time_is_a_504(service: Service) -> None:
    service.engine.script_of = lambda request: Script(fail_after=2, has_timed_out=True)

    assert _error(service.http.post("/v1/chat/completions", json=CHAT), 504)["code"] == "timeout"
    streamed = service.http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert '"code":"timeout"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_a_grammar_that_the_engine_refuses_names_its_field(service: Service) -> None:
    def refusal(request: Request) -> ButterflyError:
        assert request.grammar is not None
        return InvalidRequestError(f"{request.grammar.param}: no such type", request.grammar.param)

    service.engine.refusal = refusal
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}

    error = _error(service.http.post("/v1/chat/completions", json={**CHAT, "response_format": schema}), 400)

    assert error["param"] == "response_format"


def test_a_failure_in_the_stream_is_an_event_and_then_the_end(service: Service) -> None:
    service.engine.script_of = lambda request: Script(fail_after=2)

    response = service.http.post("/v1/chat/completions", json={**CHAT, "stream": True})

    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert '"error"' in events[-2]
    assert "worker-1 was lost" in events[-2]
    assert events[-1] == "data: [DONE]"
    with pytest.raises(openai.APIError, match="worker-1 was lost"):
        list(service.openai.chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]


def test_the_failure_of_one_choice_aborts_its_siblings(service: Service) -> None:
    service.engine.script_of = lambda request: (
        Script(fail_after=1) if len(service.engine.submitted) == 2 else Script(pause_after=1)
    )

    _error(service.http.post("/v1/chat/completions", json={**CHAT, "n": 3}), 500)

    first, _, third = (request.request_id for request in service.engine.submitted)
    assert sorted(service.engine.aborted) == [first, third]


def test_an_engine_that_never_says_why_it_ended(service: Service) -> None:
    service.engine.script_of = lambda request: Script(forget_to_finish=True)

    error = _error(service.http.post("/v1/chat/completions", json=CHAT), 500)

    assert "without a reason" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_shows_an_id_and_no_secret(service: Service, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    service.engine.script_of = lambda request: Script(fail_after=1, failure=ZeroDivisionError("secret"))

    with caplog.at_level(logging.ERROR):
        response = service.http.post(
            "/v1/chat/completions", json={**CHAT, "stream": stream}, headers={"x-request-id": "my-call-1"}
        )

    assert "secret" not in response.text
    assert "my-call-1" in response.text
    assert response.headers["x-request-id"] == "my-call-1"
    assert "ZeroDivisionError" in caplog.text  # the operator does get the traceback
    if not stream:
        _error(response, 500)


def test_request_ids_are_echoed_or_made(service: Service) -> None:
    def echo_of(headers: dict[str, str]) -> str:
        return service.http.get("/health", headers=headers).headers["x-request-id"]

    assert echo_of({"x-request-id": "abc-1"}) == "abc-1"
    assert echo_of({"x-request-id": "spaces are not ids"}).startswith("req-")
    assert echo_of({}) != echo_of({})


def test_clients_cannot_choose_the_ids_of_engine_requests(service: Service) -> None:
    for _ in range(2):  # else two calls with one id would abort each other's requests
        service.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "same"})

    first, second = service.engine.submitted
    assert first.request_id != second.request_id


def test_bodies_are_not_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    secret = "a very private question"
    with caplog.at_level(logging.DEBUG, "butterfly"), caplog.at_level(logging.DEBUG, "uvicorn"):
        service.http.post("/v1/completions", json={"model": "tiny", "prompt": secret})
        service.http.post("/v1/completions", json={"model": "tiny", "prompt": secret, "n": secret})

    assert secret not in caplog.text
