"""`butterfly token`: what it prints, and what a running server then sees."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import typer

from butterfly.cli.main import app
from butterfly.cli.token import parse_duration_s
from butterfly.communication.identity import Book, CoordinatorState, parse_join_line
from butterfly.errors import ConfigError


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorState:
    """The one of a server that runs."""
    monkeypatch.setenv("BUTTERFLY_STATE", str(tmp_path))
    return CoordinatorState(tmp_path)


def token(*arguments: str) -> None:
    app(["token", *arguments], standalone_mode=False)


def welcome(state: CoordinatorState, key: str, name: str, token_id: str) -> None:
    state.book.change(lambda book: book.with_welcomed(key, name, token_id, "[red]desk.local", time.time()))


def test_a_line_is_printed_once_and_lets_workers_in(
    state: CoordinatorState, capsys: pytest.CaptureFixture[str]
) -> None:
    state.remember_address("studio.local", 7700)
    token("make", "--expires", "24h", "--note", "for [Ada]")
    line = parse_join_line(capsys.readouterr().out)
    assert (line.host, line.port, line.public_key) == ("studio.local", 7700, state.keys.public_key)
    made = state.book.read().token_of(line.secret)
    assert made is not None
    assert made.expires_s is not None
    assert made.expires_s - made.created_s == pytest.approx(86400)
    token("list")
    shown = capsys.readouterr().out
    assert [made.id, "valid"] == shown.splitlines()[1].split()[:2]
    assert "for [Ada]" in shown
    assert line.secret not in shown


def test_the_address_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    token("make", "--url", "[::1]:7700")
    assert parse_join_line(capsys.readouterr().out).address == "[::1]:7700"


def test_without_any_address_nothing_is_made(state: CoordinatorState) -> None:
    with pytest.raises(ConfigError, match="--url HOST:PORT"):
        token("make")
    assert state.book.read() == Book()


def test_revoking_a_token_names_who_came_by_it(state: CoordinatorState, capsys: pytest.CaptureFixture[str]) -> None:
    state.own_secret(time.time())
    (known,) = state.book.read().tokens
    welcome(state, "key-a", "desk", known.id)
    welcome(state, "key-b", "shelf", known.id)
    token("revoke", "desk")
    token("revoke", known.id)
    token("revoke", known.id)
    assert capsys.readouterr().out.splitlines() == [
        "revoked worker desk",
        f"revoked token {known.id} and with it shelf",
        f"{known.id} was revoked before",
    ]
    token("list")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == [known.id, "revoked"]
    assert [line.split()[:4] for line in lines[-2:]] == [
        [name, "revoked", known.id, "[red]desk.local"] for name in ("desk", "shelf")
    ]


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no token and no worker 'nobody'"):
        token("revoke", "nobody")


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), (" 1.5H ", 5400), ("2w", 1209600)],
)
def test_durations(text: str, duration_s: float) -> None:
    assert parse_duration_s(text) == duration_s


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "0h", "1h30m", "never", "1e3s", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 30m, 24h or 7d"):
        parse_duration_s(text)


def test_an_unknown_command_of_it_is_wrong_usage() -> None:
    with pytest.raises(typer.TyperException):
        token("mkae")
