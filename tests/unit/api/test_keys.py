"""Who gets in, and which files and values of keys are refused. No message may show a key."""

from __future__ import annotations

import hmac
import logging
import re
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from butterfly.api.keys import ApiKeys, KeyMiddleware, load_keys
from butterfly.errors import ConfigError

ADA, BOB = "sk-ada-0123456789", "sk-bob-0123456789"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI(openapi_url="/openapi.json")

    @app.get("/{path:path}")
    async def echo(request: Request) -> dict[str, str | None]:
        return {"tenant": request.scope.get("butterfly.tenant")}

    app.add_middleware(KeyMiddleware, keys=ApiKeys({"ada": ADA, "bob": BOB}))
    return TestClient(app)


# --------------------------------------------------------------------------------------- the border


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {BOB}"},
        {"Authorization": f"bearer  {BOB} "},
        {"x-api-key": BOB},
        {"Authorization": "Bearer unused", "x-api-key": BOB},
    ],
)
def test_a_known_key_is_let_in_under_its_label(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/v1/models", headers=headers)

    assert (answer.status_code, answer.json()) == (200, {"tenant": "bob"})


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "wants an API key"),
        ({"Authorization": f"Basic {ADA}"}, "not known here"),
        ({"Authorization": ADA}, "not known here"),
        ({"Authorization": "Bearer "}, "not known here"),
        ({"Authorization": f"Bearer {ADA[:-1]}"}, "not known here"),
        ({"Authorization": f"Bearer {ADA}{BOB}"}, "not known here"),
        ({"x-api-key": ADA.upper()}, "not known here"),
    ],
)
def test_everybody_else_is_answered_401_as_openai_does(
    client: TestClient, headers: dict[str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = client.get("/v1/models", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert says in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    assert not any(secret in answer.text + caplog.text for secret in (ADA, BOB, ADA[:-1], ADA.upper()))


def test_only_probes_are_open(client: TestClient) -> None:
    def statuses(*paths: str) -> set[int]:
        return {client.get(path).status_code for path in paths}

    assert statuses("/health", "/ready", "/version") == {200}
    assert statuses("/metrics", "/status", "/openapi.json", "/tokenizer_info", "/", "/health/x", "/Health") == {401}


def test_bytes_that_are_no_ascii_are_no_key(client: TestClient) -> None:
    assert client.get("/status", headers=[(b"Authorization", b"Bearer \xe9\xff")]).status_code == 401


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ApiKeys({"ada": ADA, "bob": BOB})
    compared: list[int] = []
    compare = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(len(a))
        return compare(a, b)

    monkeypatch.setattr("butterfly.api.keys.hmac.compare_digest", counting)
    for key in (ADA, BOB, "", "x" * 1000):
        compared.clear()
        keys.tenant_of(f"Bearer {key}")
        assert compared == [32, 32]


# ------------------------------------------------------------------------------------------ loading


def _file(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def _load(options: tuple[str, ...] = (), file: Path | None = None, environment: str | None = None) -> ApiKeys | None:
    return load_keys(options, file, {} if environment is None else {"BUTTERFLY_API_KEY": environment})


def test_keys_of_options_and_file_count_together(tmp_path: Path) -> None:
    file = _file(tmp_path, f"# who may call\n\n  ada: {ADA}\n{BOB}\n")

    keys = _load(("first-key-of-all", "eve: key-with:colon"), file)

    assert keys is not None
    assert keys.tenants == ("key-1", "eve", "ada", "key-4")
    assert keys.tenant_of_key("key-with:colon") == "eve"
    assert keys.tenant_of(f"Bearer {BOB}") == "key-4"


def test_the_environment_counts_where_nothing_else_is_said(tmp_path: Path) -> None:
    keys = _load(environment=f"{ADA}, bob: {BOB}")
    assert keys is not None
    assert keys.tenants == ("key-1", "bob")

    other = _load((ADA,), environment=BOB)
    assert other is not None
    assert other.tenants == ("key-1",)
    assert other.tenant_of_key(BOB) is None


def test_no_keys_at_all() -> None:
    assert _load() is None
    assert _load(environment=" ") is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o601])
def test_a_file_that_others_may_touch_is_refused_as_ssh_does(tmp_path: Path, mode: int) -> None:
    file = _file(tmp_path, ADA, mode)

    with pytest.raises(ConfigError, match=f"others may read it \\(mode {mode:o}\\): chmod 600 {re.escape(str(file))}"):
        _load(file=file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no API key"),
        ("# nothing yet\n", "holds no API key"),
        (b"\xff\xfe" + ADA.encode(), "is no text file"),
        (f"ada: {ADA}\nada: {BOB}\n", "line 2: the label 'ada' is taken"),
        (f"ada: {ADA}\n\nbob: {ADA}\n", "line 3: the same key a second time"),
        (f"{ADA}\nkey-3: {BOB}\nthird-key\n", "line 3: the label 'key-3' is taken"),
        (f"ada: {ADA} {BOB}\n", "line 1: write 'label: key' or just the key"),
        (f"{ADA} {BOB}\n", "line 1: write 'label: key' or just the key"),
        (f"ä: {ADA}\n", "line 1: a label has"),
        ("ada: short-7\n", "line 1: a key has at least 8 characters"),
        ("ada: schlüssel-0123\n", "line 1: a key has at least 8 characters, all of them printable ASCII"),
    ],
)
def test_files_that_hold_no_good_keys(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        _load(file=_file(tmp_path, text))

    assert not any(secret in str(refused.value) for secret in (ADA, BOB, "short-7", "schlüssel"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; check --api-key-file"):
        _load(file=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="Is a directory"):
        _load(file=tmp_path)


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (("",), None, "--api-key number 1: write 'label: key'"),
        ((ADA, "short-7"), None, "--api-key number 2: a key has at least 8"),
        ((ADA, ADA), None, "--api-key number 2: the same key a second time"),
        ((), f"{ADA},", "BUTTERFLY_API_KEY number 2: write 'label: key'"),
        ((), ",", "BUTTERFLY_API_KEY number 1: write 'label: key'"),
    ],
)
def test_values_that_are_no_good_keys(options: tuple[str, ...], environment: str | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        _load(options, environment=environment)

    assert ADA not in str(refused.value)
    assert "short-7" not in str(refused.value)
