"""`butterfly status [URL]`: who holds which layers."""

from __future__ import annotations

from typing import Annotated

import httpx
import msgspec
import typer
from rich.table import Table

from butterfly.cli.console import console, format_bytes, format_layers
from butterfly.errors import ConfigError
from butterfly.specs import ClusterStatus

_TIMEOUT_S = 5.0


def status(
    url: Annotated[str, typer.Argument(help="Address of a running server.")] = "http://127.0.0.1:8000",
    as_json: Annotated[bool, typer.Option("--json", help="Print the snapshot as JSON.")] = False,
) -> None:
    """Show the workers of a running server: layers, memory, epoch."""
    snapshot = fetch_status(url)
    if as_json:
        console.print(msgspec.json.encode(snapshot).decode(), markup=False, soft_wrap=True)
        return
    console.print(f"{snapshot.model}: {snapshot.phase}, epoch {snapshot.epoch}", markup=False)
    if snapshot.detail:
        console.print(snapshot.detail, markup=False)
    console.print(f"requests: {snapshot.running_requests} running, {snapshot.waiting_requests} waiting")
    console.print(workers_table(snapshot))


def fetch_status(url: str) -> ClusterStatus:
    """Raises ConfigError in one line when nobody, or somebody else, answers."""
    base = url.rstrip("/").removesuffix("/v1")
    try:
        response = httpx.get(f"{base}/status", timeout=_TIMEOUT_S, trust_env=False)  # no proxy
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=ClusterStatus)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"no Butterfly server answers at {base}: {error}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{base} is not a Butterfly server of this version: {error}") from error


def workers_table(snapshot: ClusterStatus) -> Table:
    table = Table("worker", "state", "layers", "weights", "resident", "KV used", "device", "host", "pid", box=None)
    for worker in snapshot.workers:
        table.add_row(
            worker.name,
            worker.phase,
            format_layers(worker.start, worker.end, embedding=worker.embedding, head=worker.head),
            format_bytes(worker.weight_bytes),
            format_bytes(worker.resident_bytes),
            format_bytes(worker.kv_used_bytes),
            worker.device,
            worker.host,
            str(worker.pid),
        )
    return table
