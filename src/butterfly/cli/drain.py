"""`butterfly drain WORKER`: let a worker leave a running server, and tell when it has."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Annotated, Any

import httpx
import msgspec
import typer
from rich.text import Text

from butterfly.cli.console import console, errors
from butterfly.cli.status import DEFAULT_URL, ApiKey, CaFile, RunningServer, client_key
from butterfly.errors import ConfigError, PeerTimeoutError, PlanError
from butterfly.specs import ClusterStatus, WorkerStatus

_LOOK_S = 0.3
_LONGEST_S = 900.0  # more than the longest that stages may load


def drain(
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="Its name, as `butterfly status` shows it.")],
    url: Annotated[str, typer.Option("--url", help="Address of the running server.")] = DEFAULT_URL,
    api_key: ApiKey = "",
    ca_file: CaFile = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has left.")] = True,
) -> None:
    """Let WORKER leave: others take over its layers, and requests go on. Where there are keys, it takes `admin`'s."""
    server = RunningServer(url, client_key(api_key, os.environ.get("BUTTERFLY_API_KEY", "")), ca_file)
    check(ask_to_leave(server, worker))
    if not wait:
        console.print(f"{worker} is to leave", markup=False)
        return
    try:
        wait_until_gone(server, worker)
    except KeyboardInterrupt:
        errors.print(f"not waited for any more: {worker} leaves all the same", markup=False)
        raise
    console.print(f"{worker} has left", markup=False)


def ask_to_leave(server: RunningServer, worker: str) -> httpx.Response:
    """Raises ConfigError when nobody answers."""
    return server.ask("/cluster/drain", msgspec.json.encode({"worker": worker}))


def check(response: httpx.Response) -> None:
    """Raises PlanError when the others cannot do without this worker, ConfigError for any other refusal."""
    if response.is_success:
        return
    error = PlanError if response.status_code == httpx.codes.CONFLICT else ConfigError
    raise error(refusal(response))


def refusal(response: httpx.Response) -> str:
    """What the server says, or what its answer is if that is in no form of ours."""
    with suppress(ValueError, KeyError, TypeError):
        body: Any = response.json()
        return str(body["error"]["message"])
    return f"{response.url} answers {response.status_code} {response.reason_phrase}, as no Butterfly server does"


def wait_until_gone(server: RunningServer, worker: str) -> None:
    """Wait, with a line of progress on a terminal. Raises PlanError when it may not leave after all.

    A wish that comes while the cluster moves is judged later, and nobody is told: so it is repeated after that.
    """
    deadline_s = time.monotonic() + _LONGEST_S
    with errors.status("") as line:
        while (row := find(status := server.status(), worker)) is not None:
            line.update(Text(f"{worker} is {row.phase}; the cluster is {status.phase}: {status.detail}".rstrip(": ")))
            if time.monotonic() > deadline_s:
                raise PeerTimeoutError(f"{worker} has not left within {_LONGEST_S:g} s: it is {row.phase}", worker)
            time.sleep(_LOOK_S)
            if status.phase == "ready":
                answer = ask_to_leave(server, worker)
                if answer.status_code != httpx.codes.BAD_REQUEST:  # else it has just gone
                    check(answer)


def find(status: ClusterStatus, worker: str) -> WorkerStatus | None:
    """The worker's row; None when it is not there any more."""
    return next((row for row in status.workers if row.name == worker and row.phase != "lost"), None)
