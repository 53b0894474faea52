"""A client that goes away takes its requests with it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from butterfly.specs import Request, RequestOutput
from tests.unit.api.conftest import Service
from tests.unit.api.doubles import PATIENCE_S, Script

CHAT: dict[str, object] = {"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}]}


def _post(url: str, body: dict[str, object]) -> socket.socket:
    """Send a call by hand, so that the connection can be dropped at any moment."""
    address = urlsplit(url)
    assert address.hostname is not None
    connection = socket.create_connection((address.hostname, address.port or 0), timeout=PATIENCE_S)
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("num_choices", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_aborts_every_request_of_the_call(service: Service, stream: bool, num_choices: int) -> None:
    service.engine.script_of = lambda request: Script(pause_after=2)

    with _post(service.url, {**CHAT, "stream": stream, "n": num_choices}) as connection:
        service.engine.wait_submitted(num_choices)
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    service.engine.wait_aborted(num_choices)

    submitted = sorted(request.request_id for request in service.engine.submitted)
    assert sorted(service.engine.aborted) == submitted


def test_leaving_in_the_middle_of_an_endless_stream(service: Service) -> None:
    service.engine.script_of = lambda request: Script("x" * 150, pause_after=100)

    with service.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        next(response.iter_lines())
    service.engine.wait_aborted(1)


def test_leaving_while_the_engine_decides(service: Service) -> None:
    accept = service.engine.submit

    async def submit_for_ever(request: Request) -> AsyncIterator[RequestOutput]:
        await accept(request)
        await asyncio.Event().wait()
        raise AssertionError("not reached")

    service.engine.submit = submit_for_ever  # type: ignore[method-assign]

    with _post(service.url, CHAT):
        service.engine.wait_submitted()
    service.engine.wait_aborted(1)


def test_leaving_in_the_middle_of_the_body_is_no_accident(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    address = urlsplit(service.url)
    assert address.hostname is not None
    with caplog.at_level(logging.WARNING):
        with socket.create_connection((address.hostname, address.port or 0), timeout=PATIENCE_S) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: 99\r\n\r\n{")
            # Once this is answered, the server has read what came before it on the other connection.
            service.http.get("/health")
        for _ in range(20):  # turns of the event loop in which a complaint would come up
            service.http.get("/health")

    assert service.engine.submitted == []
    assert caplog.text == ""


def test_others_go_on(service: Service) -> None:
    service.engine.script_of = lambda request: Script(pause_after=0 if len(service.engine.submitted) == 1 else None)

    with _post(service.url, {**CHAT, "stream": True}):
        service.engine.wait_submitted()
        answer = service.http.post("/v1/chat/completions", json=CHAT)
    service.engine.wait_aborted(1)

    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert service.engine.aborted == [service.engine.submitted[0].request_id]
