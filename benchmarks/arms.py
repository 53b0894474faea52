"""What is measured side by side: Butterfly and llama.cpp, each serving a model over any number of nodes.

Both arms recompute every prompt: a second round with the same prompts would otherwise measure a cache.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.processes import ServerProcess, fetch, running, wait_until_ready
from butterfly.models.gguf_file import read_gguf
from butterfly.specs import ClusterStatus

if TYPE_CHECKING:
    from benchmarks.lab import Node

_PORT, _RPC_PORT = 8000, 50052  # on nodes, which have them to themselves
_LOAD_TIMEOUT_S = 600.0  # llama.cpp sends weights over the links: half a gigabyte takes four minutes at 20 Mb/s
_LISTEN_TIMEOUT_S = 20.0  # until a process that loads nothing listens


class Server(NamedTuple):
    """A model that is served, and what is needed to load and to watch it."""

    url: str  # without /v1
    node: Node | None  # run the load in its network, not pinned; None: here
    pids: dict[str, int]  # of every process, for memory
    load_time_s: float  # from the first process's start until requests are accepted


class Arm(Protocol):
    @property
    def name(self) -> str: ...

    def start(
        self, model: Path, nodes: Sequence[Node], threads: int, num_streams: int, context: int
    ) -> AbstractContextManager[Server]:
        """Serve `model` during the block, its layers over all `nodes`; no nodes: here, in one piece, on loopback.

        `threads` are per node; every one of `num_streams` requests at once has `context` tokens. Raises
        ServerFailedError when a process ends or does not become ready.
        """


@dataclass(frozen=True)
class ButterflyArm:
    """One worker per node; coordinator and API on the first, or on `front`. `options` go to `butterfly serve`."""

    name: str = "butterfly"
    options: tuple[str, ...] = ()
    front: Node | None = None  # with coordinator and API, and no worker
    cache: Path | None = None  # where profiles are kept, when not in the user's own place
    load_timeout_s: float = _LOAD_TIMEOUT_S

    @contextmanager
    def start(
        self, model: Path, nodes: Sequence[Node], threads: int, num_streams: int, context: int
    ) -> Iterator[Server]:
        host, port, node = _place([self.front] if self.front else nodes)
        argv = self.command(model, nodes, threads, num_streams, context, host, port)
        url = f"http://{host}:{port}"
        started_s = time.monotonic()
        environment = _without_keys() | ({"BUTTERFLY_CACHE": str(self.cache)} if self.cache else {})
        with running("butterfly serve", argv, node, environment) as serving:
            ready_s = wait_until_ready(serving, f"{url}/ready", self.load_timeout_s)
            status = msgspec.json.decode(fetch(f"{url}/status", node), type=ClusterStatus)
            pids = {"coordinator": serving.process.pid} | {worker.name: worker.pid for worker in status.workers}
            yield Server(url, node, pids, ready_s - started_s)

    def command(
        self,
        model: Path,
        nodes: Sequence[Node],
        threads: int,
        num_streams: int,
        context: int,
        host: str,
        port: int,
    ) -> list[str]:
        argv = [sys.executable, "-m", "butterfly", "serve", str(model), "--host", host, "--port", str(port)]
        argv += ["--workers", str(max(1, len(nodes))), "--threads", str(threads), "--no-api-key"]
        argv += ["--context", str(context), "--max-sequences", str(num_streams), "--prefix-reuse", "off"]
        argv += ["--target-ttft", "3600"]  # a slow link is to be measured, not refused
        if nodes:
            argv += ["--listen", host]
        for node in nodes:
            argv += ["--start-with", shlex.join(node.command([]))]
        return [*argv, *self.options]


@dataclass(frozen=True)
class LlamaCppArm:
    """llama-server on the first node; its other nodes are RPC servers. `options` go to llama-server.

    With `local_share` the first node computes the first layers itself, which saves them a trip and lets llama.cpp
    use its repacked kernels there; else it is an RPC server too. Layers and head are split evenly, the head to the last
    node, whose logits then travel (200 KB per token for a vocabulary of 49152); `local_head` keeps it on the first.
    Its own default warm-up (one empty run) is part of the load time.
    """

    peer: LlamaCpp
    name: str = "llama.cpp"
    local_share: bool = True
    local_head: bool = False  # only with local_share
    options: tuple[str, ...] = ()
    load_timeout_s: float = _LOAD_TIMEOUT_S

    @contextmanager
    def start(
        self, model: Path, nodes: Sequence[Node], threads: int, num_streams: int, context: int
    ) -> Iterator[Server]:
        host, port, node = _place(nodes)
        helpers = [] if len(nodes) < 2 else nodes[1:] if self.local_share else nodes
        started_s = time.monotonic()
        with ExitStack() as stack:
            servers = [stack.enter_context(running(*self._rpc_server(helper, threads))) for helper in helpers]
            for server, helper in zip(servers, helpers, strict=True):
                wait_until_ready(server, f"tcp://{helper.address}:{_RPC_PORT}", _LISTEN_TIMEOUT_S)
            argv = self.command(model, [helper.address for helper in helpers], threads, num_streams, context)
            argv += ["--host", host, "--port", str(port)]
            servers.append(stack.enter_context(running("llama-server", argv, node)))
            url = f"http://{host}:{port}"
            ready_s = wait_until_ready(servers[-1], f"{url}/health", self.load_timeout_s)
            yield Server(url, node, _pids(servers), ready_s - started_s)

    def _rpc_server(self, node: Node, threads: int) -> tuple[str, list[str], Node]:
        argv = [str(self.peer.rpc_server), "-H", node.address, "-p", str(_RPC_PORT), "-t", str(threads)]
        return f"ggml-rpc-server on {node.name}", argv, node

    def command(self, model: Path, helpers: Sequence[str], threads: int, num_streams: int, context: int) -> list[str]:
        """llama-server's command line; `helpers` are the addresses of the RPC servers."""
        argv = [str(self.peer.server), "-m", str(model), "-t", str(threads), "-tb", str(threads)]
        # the context is divided among the slots; fitting to memory would change what was asked for
        argv += ["-np", str(num_streams), "-c", str(context * num_streams), "-fit", "off"]
        argv += ["--no-webui", "--no-cache-prompt", "--cache-ram", "0"]
        if helpers:
            parts = num_layers(model) + 1  # llama.cpp counts the head as one more layer
            argv += ["--rpc", ",".join(f"{address}:{_RPC_PORT}" for address in helpers)]
            argv += ["-ngl", str(parts - self._num_local_layers(parts, len(helpers) + 1))]
            argv += ["-ts", ",".join("1" * len(helpers))]
            argv += ["-ot", r"^(output|token_embd)\.weight$=CPU"] if self.local_head else []
        return [*argv, *self.options]

    def _num_local_layers(self, parts: int, num_nodes: int) -> int:
        if not self.local_share:
            return 0
        return max(0, parts // num_nodes - 1) if self.local_head else -(-parts // num_nodes)


def num_layers(model: Path) -> int:
    """Return the number of decoder layers of a GGUF file. Raises ModelFormatError."""
    file = read_gguf(model)
    return file.integer(f"{file.text('general.architecture')}.block_count")


def _pids(servers: Sequence[ServerProcess]) -> dict[str, int]:
    return {server.name: server.process.pid for server in servers}


def _place(nodes: Sequence[Node]) -> tuple[str, int, Node | None]:
    """Where the API listens: on the first node, or on a free port of this machine's loopback."""
    if nodes:
        return nodes[0].address, _PORT, nodes[0]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return "127.0.0.1", probe.getsockname()[1], None


def _without_keys() -> dict[str, str]:
    """This environment without API keys: the load generator has none."""
    return {name: value for name, value in os.environ.items() if name != "BUTTERFLY_API_KEY"}
