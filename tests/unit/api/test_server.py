"""The port, the thread and the stop."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
import threading
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from butterfly.api import ApiServer, BoundPort, create_app
from butterfly.api.tls import TlsFiles
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


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("", False)],
)
def test_what_only_this_machine_can_reach(host: str, is_loopback: bool) -> None:
    port = BoundPort(host, 0)
    try:
        assert port.is_loopback is is_loopback
    finally:
        port.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
@pytest.mark.parametrize(("host", "is_loopback"), [("::1", True), ("::ffff:127.0.0.1", True), ("::", False)])
def test_what_only_this_machine_can_reach_by_ipv6(host: str, is_loopback: bool) -> None:
    try:
        port = BoundPort(host, 0)
    except ConfigError:
        pytest.skip("IPv6 is switched off here")
    try:
        assert port.is_loopback is is_loopback
    finally:
        port.close()


# ---------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _files(folder: Path, authority: trustme.CA) -> tuple[Path, Path]:
    """A certificate for this machine and its key, as files."""
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


def test_https_with_a_real_certificate(engine: ScriptedEngine, authority: trustme.CA, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    app = create_app(engine, served_model(engine.tokenizer))
    with ApiServer(app, BoundPort("127.0.0.1", 0), tls=TlsFiles(*_files(tmp_path, authority))) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with httpx.Client(verify=trusting, trust_env=False, timeout=PATIENCE_S) as client:
            answer = client.post(f"{server.url}/v1/completions", json={**COMPLETION, "stream": True})
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/health", trust_env=False)  # nobody told this client of our authority
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{server.bound_port.url}/health", trust_env=False)  # not HTTP as well

    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")
    assert set(threading.enumerate()) == threads


def test_tls_files_that_cannot_be_used(authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = _files(tmp_path, authority)
    (tmp_path / "other").mkdir()
    _, other_key = _files(tmp_path / "other", authority)
    notes = tmp_path / "notes.pem"
    notes.write_text("Dear diary,")
    nothing = tmp_path / "nothing.pem"

    with pytest.raises(ConfigError, match=r"nothing\.pem: No such file or directory; check --ssl-certfile"):
        TlsFiles(nothing, key)
    with pytest.raises(ConfigError, match=r"nothing\.pem: No such file or directory; check --ssl-keyfile"):
        TlsFiles(certificate, nothing)
    with pytest.raises(ConfigError, match=r"key\.pem is not the private key of the certificate in .*certificate\.pem"):
        TlsFiles(certificate, other_key)
    for pair in ((notes, key), (certificate, notes), (key, certificate)):
        with pytest.raises(ConfigError, match="are no certificate and private key in PEM form"):
            TlsFiles(*pair)


def test_a_key_with_a_passphrase_is_refused_without_asking(authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = _files(tmp_path, authority)
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )

    with pytest.raises(ConfigError, match=r"key\.pem has a passphrase"):
        TlsFiles(certificate, key)
