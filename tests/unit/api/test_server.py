"""The port, the thread and the stop."""

from __future__ import annotations

import logging
import signal
import socket
import threading

import httpx
import pytest

from butterfly.api import ApiServer, BoundPort, create_app
from butterfly.errors import ConfigError
from tests.unit.api.doubles import PATIENCE_S, ByteTokenizer, Script, ScriptedEngine, served_model

COMPLETION = {"model": "tiny", "prompt": "x"}


@pytest.fixture
def engine(tokenizer: ByteTokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer)


def _server(engine: ScriptedEngine, **options: bool | int) -> ApiServer:
    app = create_app(engine, served_model(engine.tokenizer))
    return ApiServer(app, BoundPort("127.0.0.1", 0), **options)  # type: ignore[arg-type]


def test_a_port_in_use_is_told_before_anything_starts() -> None:
    first = BoundPort("127.0.0.1", 0)
    try:
        with pytest.raises(ConfigError, match=f"port {first.port} is in use; choose another with --port"):
            BoundPort("127.0.0.1", first.port)
    finally:
        first.close()
    BoundPort("127.0.0.1", first.port).close()


@pytest.mark.parametrize(
    ("host", "port", "problem"),
    [
        ("127.0.0.1", 65536, "65536 is not a port"),
        ("192.0.2.1", 0, "not an address of this machine"),
        ("no such host", 0, "cannot resolve host 'no such host'"),
    ],
)
def test_addresses_that_cannot_be_had(host: str, port: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        BoundPort(host, port)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
def test_the_url_of_a_bound_port_reaches_it(host: str) -> None:
    port = BoundPort(host, 0)
    try:
        assert port.port > 0
        with socket.create_connection(("127.0.0.1", port.port), timeout=PATIENCE_S):
            assert port.url.endswith(f":{port.port}")
    finally:
        port.close()


def test_start_and_stop_leave_no_thread_and_no_port(engine: ScriptedEngine) -> None:
    threads = set(threading.enumerate())
    server = _server(engine)
    server.start()
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200

    assert server.stop()

    assert set(threading.enumerate()) == threads
    BoundPort("127.0.0.1", server.bound_port.port).close()


def test_stop_before_the_first_call_and_twice(engine: ScriptedEngine) -> None:
    server = _server(engine)
    server.start()

    assert server.stop()
    assert server.stop()


def test_stop_cuts_calls_off_that_outlast_the_grace(engine: ScriptedEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.script_of = lambda request: Script(pause_after=1)
    server = _server(engine, grace_s=0)
    server.start()
    with (
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as client,
        client.stream("POST", f"{server.url}/v1/completions", json={**COMPLETION, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        with caplog.at_level(logging.WARNING):
            assert server.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)

    assert engine.aborted == [engine.submitted[0].request_id]
    assert "Traceback" not in caplog.text


def test_run_serves_in_this_thread_until_asked_to_stop(engine: ScriptedEngine) -> None:
    server = _server(engine)
    answers: list[int] = []

    def call_and_stop() -> None:
        answers.append(httpx.get(f"{server.url}/health", trust_env=False).status_code)
        server.request_stop()

    caller = threading.Thread(target=call_and_stop)
    caller.start()
    server.run()
    caller.join(PATIENCE_S)

    assert answers == [200]


@pytest.mark.parametrize("handles_signals", [False, True])
def test_signals_are_only_taken_when_asked(engine: ScriptedEngine, handles_signals: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []
    server = _server(engine, handles_signals=handles_signals)

    def look_and_stop() -> None:
        httpx.get(f"{server.url}/health", trust_env=False)
        seen.append(signal.getsignal(signal.SIGTERM))
        server.request_stop()

    caller = threading.Thread(target=look_and_stop)
    caller.start()
    server.run()
    caller.join(PATIENCE_S)

    assert (seen[0] == before) is not handles_signals
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_metrics_there_is_no_such_page_and_without_template_no_chat(tokenizer: ByteTokenizer) -> None:
    app = create_app(ScriptedEngine(tokenizer), served_model(tokenizer, with_template=False))
    with ApiServer(app, BoundPort("127.0.0.1", 0)) as server:
        url = server.url
        metrics = httpx.get(f"{url}/metrics", trust_env=False)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
        chat = httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False)

    assert metrics.status_code == 404
    assert chat.status_code == 400
    assert "no chat template; use /v1/completions" in chat.json()["error"]["message"]
