"""`butterfly status [URL]`: who holds which layers, and whether that is as fast as was predicted."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import typer
from rich.table import Table

from butterfly.cli.console import console, format_bytes, format_layers
from butterfly.cli.moves import moves_table
from butterfly.cli.speeds import plan_lines, speed_table, warning
from butterfly.cluster_file import write_cluster
from butterfly.errors import ConfigError
from butterfly.specs import ClusterSpec, ClusterStatus

DEFAULT_URL = "http://127.0.0.1:8000"
ApiKey = Annotated[
    str, typer.Option("--api-key", metavar="KEY", help="The server's key; BUTTERFLY_API_KEY if not given.")
]
CaFile = Annotated[
    Path | None, typer.Option("--ca-file", help="Certificate (PEM) to trust for https: the server's or its CA's.")
]
_TIMEOUT_S = 5.0
_CHANGE_TIMEOUT_S = 60.0  # the answer may take a plan, which takes seconds for many workers


def status(
    url: Annotated[str, typer.Argument(help="Address of a running server.")] = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the snapshot as JSON.")] = False,
    api_key: ApiKey = "",
    ca_file: CaFile = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the cluster as it was measured to this file, for butterfly plan.")
    ] = None,
) -> None:
    """Show the workers of a running server, what was predicted beside what is measured, and its last moves."""
    snapshot = RunningServer(url, client_key(api_key, os.environ.get("BUTTERFLY_API_KEY", "")), ca_file).status()
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
    for worker in snapshot.workers:
        if worker.loss and worker.loss not in snapshot.detail:
            console.print(worker.loss, markup=False, soft_wrap=True)
    print_speeds(snapshot)
    if snapshot.recoveries:
        console.print(moves_table(snapshot.recoveries, snapshot.now_s))


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


@dataclass(frozen=True)
class RunningServer:
    """A server that somebody started, and what it takes to talk to it."""

    url: str  # with or without /v1
    key: str = field(default="", repr=False)
    ca_file: Path | None = None

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    def ask(self, path: str, body: bytes | None = None) -> httpx.Response:
        """Return the answer, whatever its status, of a GET; with a body, in JSON, of a POST.

        Raises ConfigError in one line when nobody answers, and for a key that is not accepted.
        """
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            response = httpx.request(
                "GET" if body is None else "POST",
                f"{self.base}{path}",
                content=body,
                headers={**headers, "content-type": "application/json"},
                verify=True if self.ca_file is None else trusting(self.ca_file),
                timeout=_TIMEOUT_S if body is None else _CHANGE_TIMEOUT_S,
                trust_env=False,  # no proxy
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._no_answer(error) from error
        if response.status_code == httpx.codes.UNAUTHORIZED:
            reason = "does not know this API key: check" if self.key else "wants an API key: give"
            raise ConfigError(f"the server at {self.base} {reason} --api-key or BUTTERFLY_API_KEY")
        return response

    def status(self) -> ClusterStatus:
        """Raises ConfigError as `ask`, and when somebody else answers."""
        response = self.ask("/status")
        try:
            return msgspec.json.decode(response.raise_for_status().content, type=ClusterStatus)
        except httpx.HTTPError as error:
            raise self._no_answer(error) from error
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self.base} is not a Butterfly server of this version: {error}") from error

    def _no_answer(self, error: Exception) -> ConfigError:
        advice = "; give the certificate with --ca-file" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
        return ConfigError(f"no Butterfly server answers at {self.base}: {error}{advice}")


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
