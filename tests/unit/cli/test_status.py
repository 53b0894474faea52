"""`butterfly status` against a server that wants a key and speaks HTTPS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from butterfly.api import ApiKeys, ApiServer, BoundPort, TlsFiles, create_app
from butterfly.cli.status import RunningServer, client_key
from butterfly.errors import ConfigError
from tests.unit.api.doubles import ByteTokenizer, ScriptedEngine, served_model

KEY = "sk-ada-0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine, its key, and who signed it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    tokenizer = ByteTokenizer()
    app = create_app(ScriptedEngine(tokenizer), served_model(tokenizer), keys=ApiKeys({"ada": KEY}))
    tls = TlsFiles(folder / "server.pem", folder / "server.pem")
    with ApiServer(app, BoundPort("127.0.0.1", 0), tls=tls) as server:
        yield server.url


def test_with_key_and_certificate_it_answers(url: str, folder: Path) -> None:
    assert RunningServer(f"{url}/v1", KEY, folder / "authority.pem").status().model == "tiny"


def test_a_refused_key_is_explained(url: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="wants an API key: give --api-key or BUTTERFLY_API_KEY"):
        RunningServer(url, "", folder / "authority.pem").status()
    with pytest.raises(ConfigError, match="does not know this API key: check --api-key or BUTTERFLY_API_KEY") as wrong:
        RunningServer(url, "sk-eve-0123456789", folder / "authority.pem").status()
    assert "sk-eve" not in str(wrong.value)


def test_a_certificate_that_nobody_vouches_for_is_explained(url: str) -> None:
    with pytest.raises(ConfigError, match=r"CERTIFICATE_VERIFY_FAILED.*; give the certificate with --ca-file"):
        RunningServer(url, KEY).status()


def test_files_that_are_no_certificate(url: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes.pem"
    notes.write_text("Dear diary,")
    with pytest.raises(ConfigError, match=r"notes\.pem is no certificate in PEM form; check --ca-file"):
        RunningServer(url, KEY, notes).status()
    with pytest.raises(ConfigError, match=r"nothing\.pem: No such file or directory; check --ca-file"):
        RunningServer(url, KEY, tmp_path / "nothing.pem").status()


@pytest.mark.parametrize(
    ("option", "stated", "key"),
    [
        ("", "", ""),
        ("", KEY, KEY),
        ("", f"ada: {KEY}, bob: sk-bob", KEY),
        ("a,b", KEY, "a,b"),
    ],
)
def test_the_key_to_send(option: str, stated: str, key: str) -> None:
    assert client_key(option, stated) == key


def test_what_no_header_can_carry() -> None:
    for option in ("schlüssel", "a\nb"):
        with pytest.raises(ConfigError, match="printable ASCII"):
            client_key(option, "")
