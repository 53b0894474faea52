"""`butterfly status [URL]`: who holds which layers, and whether that is as fast as was predicted."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer
from rich.table import Table

from butterfly.cli.console import console, format_bytes, format_layers
from butterfly.cli.speeds import plan_lines, speed_table, warning
from butterfly.cluster_file import write_cluster
from butterfly.errors import ConfigError
from butterfly.specs import ClusterSpec, ClusterStatus

_TIMEOUT_S = 5.0


def status(
    url: Annotated[str, typer.Argument(help="Address of a running server.")] = "http://127.0.0.1:8000",
    as_json: Annotated[bool, typer.Option("--json", help="Print the snapshot as JSON.")] = False,
    api_key: Annotated[
        str, typer.Option("--api-key", metavar="KEY", help="The server's key; BUTTERFLY_API_KEY if not given.")
    ] = "",
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", help="Certificate (PEM) to trust for https: the server's or its CA's.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the cluster as it was measured to this file, for butterfly plan.")
    ] = None,
) -> None:
    """Show the workers of a running server: layers, memory, epoch; and what was predicted beside what is measured."""
    snapshot = fetch_status(url, client_key(api_key, os.environ.get("BUTTERFLY_API_KEY", "")), ca_file)
    if export is not None:
        write_cluster(export, measured_cluster(snapshot))
    if as_json:
        console.print(msgspec.json.encode(snapshot).decode(), markup=False, soft_wrap=True)
        return
    console.print(f"{snapshot.model}: {snapshot.phase}, epoch {snapshot.epoch}", markup=False)
    if snapshot.detail:
        console.print(snapshot.detail, markup=False)
    console.print(f"requests: {snapshot.running_requests} running, {snapshot.waiting_requests} waiting")
    console.print(workers_table(snapshot))
    print_speeds(snapshot)


def measured_cluster(snapshot: ClusterStatus) -> ClusterSpec:
    """Raises ConfigError when nothing has been measured yet."""
    if snapshot.cluster is None:
        raise ConfigError(f"the cluster has not been measured yet: it is {snapshot.phase} ({snapshot.detail})")
    return snapshot.cluster


def print_speeds(snapshot: ClusterStatus) -> None:
    plan, predicted, measured = snapshot.plan, snapshot.predicted, snapshot.measured
    if plan is None:
        return
    for line in plan_lines(plan):
        console.print(line, markup=False)
    if predicted is None or measured is None:
        return
    console.print(speed_table(predicted, measured))
    if words := warning(plan, predicted, measured):
        console.print(words, markup=False, soft_wrap=True)


def fetch_status(url: str, key: str = "", ca_file: Path | None = None) -> ClusterStatus:
    """Raises ConfigError in one line when nobody, or somebody else, answers, and for a key that is not accepted."""
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    trusted = True if ca_file is None else trusting(ca_file)
    try:
        response = httpx.get(
            f"{base}/status",
            headers=headers,
            verify=trusted,
            timeout=_TIMEOUT_S,
            trust_env=False,  # no proxy
        )
        if response.status_code == httpx.codes.UNAUTHORIZED:
            reason = "does not know this API key: check" if key else "wants an API key: give"
            raise ConfigError(f"the server at {base} {reason} --api-key or BUTTERFLY_API_KEY")
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=ClusterStatus)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = "; give the certificate with --ca-file" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
        raise ConfigError(f"no Butterfly server answers at {base}: {error}{advice}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{base} is not a Butterfly server of this version: {error}") from error


def client_key(option: str, stated: str) -> str:
    """The key to send: the option's, else the first of those in BUTTERFLY_API_KEY ("label: key, ..."), else "".

    Raises ConfigError for what no header can carry.
    """
    words = [option] if option else stated.partition(",")[0].split()
    key = words[-1] if words else ""
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("an API key is printable ASCII; check --api-key or BUTTERFLY_API_KEY")
    return key


def trusting(ca_file: Path) -> ssl.SSLContext:
    """Trust who proves to be, or to be certified by, the one in the file. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise ConfigError(f"{ca_file} is no certificate in PEM form; check --ca-file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {ca_file}: {error.strerror}; check --ca-file") from error


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
