"""`butterfly token`: who may join the clusters that this user serves from this machine."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from butterfly.cli.console import console
from butterfly.communication.identity import AdmittedWorker, Book, CoordinatorState, JoinToken, parse_address
from butterfly.errors import ConfigError
from butterfly.folders import state_folder

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

token = typer.Typer(
    name="token",
    help="Make, list and revoke join tokens. A running server goes by what they are within about a second.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@token.command()
def make(
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long new workers may join by it, such as 30m, 24h or 7d.")
    ] = "",
    note: Annotated[str, typer.Option(help="What it is for; shown by `butterfly token list`.")] = "",
    url: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Where workers reach the server; as it said itself when it ran last."),
    ] = "",
) -> None:
    """Print a join line with a new secret, which is shown this once."""
    lifetime_s = parse_duration_s(expires) if expires else None
    state = CoordinatorState(state_folder())
    address = parse_address(url) if url else state.remembered_address()
    if address is None:
        raise ConfigError("no server has listened for workers here yet: say where one will, with --url HOST:PORT")
    now_s = time.time()
    expires_s = None if lifetime_s is None else now_s + lifetime_s
    secret = state.new_secret(now_s, note=note, expires_s=expires_s)
    console.print(state.line(address, secret).text, markup=False, soft_wrap=True)


@token.command("list")
def list_tokens() -> None:
    """Show all tokens, and the workers that came in by them."""
    book, now_s = CoordinatorState(state_folder()).book.read(), time.time()
    console.print(tokens_table(book, now_s))
    if book.workers:
        console.print()
        console.print(workers_table(book))


@token.command()
def revoke(
    what: Annotated[str, typer.Argument(metavar="ID|WORKER", help="A token's id or a worker's name.")],
) -> None:
    """Revoke a token and every worker that came in by it, or one worker. What is running is cut off."""
    file = CoordinatorState(state_folder()).book
    before = file.read()
    after = file.change(lambda book: book.with_revoked(what, time.time()))
    console.print(summary(before, after, what), markup=False, soft_wrap=True)


def parse_duration_s(text: str) -> float:
    """'24h' -> 86400.0. Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"{text!r} is no time; write it like 30m, 24h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def tokens_table(book: Book, now_s: float) -> Table:
    table = Table("token", "state", "created", "expires", "uses", "note", box=None, pad_edge=False)
    for known in book.tokens:
        expires = "never" if known.expires_s is None else format_time(known.expires_s)
        created = format_time(known.created_s)
        table.add_row(known.id, token_phase(known, now_s), created, expires, str(known.num_uses), Text(known.note))
    return table


def workers_table(book: Book) -> Table:
    table = Table("worker", "state", "token", "host", "first seen", "last seen", box=None, pad_edge=False)
    for worker in book.workers:
        phase = "revoked" if book.is_out(worker) else "admitted"
        seen = format_time(worker.first_seen_s), format_time(worker.last_seen_s)
        table.add_row(worker.name, phase, worker.token_id, Text(worker.host), *seen)
    return table


def token_phase(known: JoinToken, now_s: float) -> str:
    if known.revoked_s is not None:
        return "revoked"
    return "expired" if known.has_expired(now_s) else "valid"


def summary(before: Book, after: Book, what: str) -> str:
    """What revoking did, in one line."""
    if before == after:
        return f"{what} was revoked before"
    gone = [worker.name for worker in _newly_out(before, after)]
    is_token = any(known.id == what for known in after.tokens)
    if not is_token:
        return f"revoked worker {what}"
    return f"revoked token {what}" + (f" and with it {', '.join(gone)}" if gone else "; no worker came in by it")


def format_time(time_s: float) -> str:
    """Local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_s))


def _newly_out(before: Book, after: Book) -> list[AdmittedWorker]:
    out_before = {worker.public_key for worker in before.workers if before.is_out(worker)}
    return [worker for worker in after.workers if after.is_out(worker) and worker.public_key not in out_before]
