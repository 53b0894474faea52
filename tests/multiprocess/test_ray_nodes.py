"""`butterfly serve --ray` over two real Ray nodes, each in a network of its own, and what streams see when things die.

Needs root (for the networks) and Ray; skipped otherwise.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgspec
import psutil
import pytest
from benchmarks.faults import streams
from benchmarks.lab import Node
from benchmarks.lab.remains import NAMESPACES
from benchmarks.processes import fetch, running, wait_until_ready

from butterfly.folders import CACHE_VARIABLE
from butterfly.models.packages import packaged_file
from butterfly.specs import ClusterStatus, WorkerStatus
from tests.support.lab import alike, lab_or_skip
from tests.support.product import BUTTERFLY

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.timeout(180),
]

RAY_START_S, READY_S, BACK_S, STREAM_S = 40.0, 60.0, 60.0, 60.0
MAX_TOKENS = 128
PROMPTS = ("Once upon a time, in a garden behind the old mill,", "The three most important inventions are")


class RayNode:
    """One node of a Ray cluster, on one node of the lab: its processes are those of that network."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self._folder = node, folder
        self._cache = folder / f"cache of {node.name}"

    def start_head(self, port: int = 6379) -> str:
        """Return the address of the cluster."""
        self._start("--head", f"--port={port}", f"--temp-dir={self._folder}", "--include-dashboard=false")
        return f"{self.node.address}:{port}"

    def join(self, address: str) -> None:
        """As a machine that has neither the model's file nor any tensor in its cache."""
        hiding = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
        elsewhere = ["env", f"{CACHE_VARIABLE}={self._cache}"]
        self._start(f"--address={address}", within=[*elsewhere, *hiding, str(packaged_file("smollm2").parent)])

    def num_fetched_tensors(self) -> int:
        return len(list((self._cache / "tensors").glob("*")))

    def processes(self) -> list[psutil.Process]:
        """All that run in this node's network, whoever started them."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.node.namespace], capture_output=True, text=True, check=True
        ).stdout
        found = []
        for pid in listed.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def kill(self) -> None:
        """The machine loses its power: everything on it is gone at once."""
        deadline_s = time.monotonic() + RAY_START_S
        while processes := [process for process in self.processes() if is_running(process)]:
            assert time.monotonic() < deadline_s, processes
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            Event().wait(0.05)

    def _start(self, *arguments: str, within: Sequence[str] = ()) -> None:
        command = [
            *within,
            str(Path(sys.executable).parent / "ray"),
            "start",
            *arguments,
            "--num-cpus=1",
            "--num-gpus=0",
        ]
        command += [f"--node-ip-address={self.node.address}", "--object-store-memory=78643200", "--disable-usage-stats"]
        done = subprocess.run(
            self.node.command(command, pinned=False), capture_output=True, text=True, timeout=RAY_START_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Served:
    """A server on the first node, asked from inside its network."""

    def __init__(self, url: str, node: Node) -> None:
        self._url, self._node = url, node
        self._last_token_s = 0.0  # of the last streams; all processes of a machine have one monotonic clock

    def status(self) -> ClusterStatus:
        return msgspec.json.decode(fetch(f"{self._url}/status", self._node), type=ClusterStatus)

    def stages(self) -> list[WorkerStatus]:
        """The workers of the plan, in pipeline order."""
        status = self.status()
        assert status.plan is not None, status.detail
        by_name = {worker.name: worker for worker in status.workers}
        return [by_name[stage.worker] for stage in status.plan.stages]

    def wait_until_whole(self, num_workers: int) -> ClusterStatus:
        """Until so many workers are there, with a stage or on standby, and requests are served."""

        def is_whole(status: ClusterStatus) -> bool:
            phases = [worker.phase for worker in status.workers if worker.phase != "lost"]
            return status.phase == "ready" and len(phases) == num_workers and set(phases) <= {"ready", "standby"}

        return self.wait_until(is_whole, f"{num_workers} workers")

    def wait_until(self, is_so: Callable[[ClusterStatus], bool], what: str) -> ClusterStatus:
        deadline_s = time.monotonic() + BACK_S
        while not is_so(status := self.status()):
            assert time.monotonic() < deadline_s, f"waited in vain: {what}; {status.phase}: {status.detail}"
            Event().wait(0.2)
        return status

    def answers(self, meanwhile: Callable[[], None] | None = None) -> list[str]:
        """The greedy texts of all prompts, streamed at once; `meanwhile` runs when the first tokens are there."""
        argv = self._node.command([sys.executable, streams.__file__], pinned=False)
        job = {"url": self._url, "model": "smollm2", "prompts": list(PROMPTS), "max_tokens": MAX_TOKENS}
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            disturbing = Thread(target=lambda: self._disturb(meanwhile))
            disturbing.start()
            try:
                out, _ = client.communicate(json.dumps(job).encode() + b"\n", timeout=STREAM_S)
            except subprocess.TimeoutExpired:
                client.kill()
                raise
            finally:
                disturbing.join()
        answers: list[dict[str, Any]] = sorted(map(json.loads, out.splitlines()), key=lambda one: one["number"])
        assert [one["error"] for one in answers] == [""] * len(PROMPTS)
        assert [one["reason"] for one in answers] == ["length"] * len(PROMPTS)
        self._last_token_s = max(one["times_s"][-1] for one in answers)
        return [one["text"] for one in answers]

    def assert_it_was_lost_under_the_streams(self, worker: WorkerStatus) -> None:
        moves = [move for move in self.status().recoveries if worker.name in move.cause]
        assert any(move.noticed_s < self._last_token_s for move in moves), self.status().recoveries

    def drain(self, worker: WorkerStatus) -> None:
        """The command, as somebody on the first node gives it."""
        argv = [*BUTTERFLY, "drain", worker.name, "--url", self._url]
        command = self._node.command(argv, pinned=False)
        done = subprocess.run(command, capture_output=True, text=True, timeout=BACK_S, check=False)
        assert (done.stdout, done.stderr, done.returncode) == (f"{worker.name} has left\n", "", 0)

    def _disturb(self, meanwhile: Callable[[], None] | None) -> None:
        if meanwhile is not None:
            self.wait_until(lambda status: status.kv_used_tokens > 60, "the streams are under way")
            meanwhile()


def node_of(worker: WorkerStatus, nodes: Sequence[RayNode]) -> RayNode:
    """The Ray node in whose network the worker's process is."""
    network = os.stat(f"/proc/{worker.pid}/ns/net").st_ino
    (found,) = (one for one in nodes if os.stat(NAMESPACES / one.node.namespace).st_ino == network)
    return found


@contextmanager
def ray_nodes(nodes: Sequence[Node]) -> Iterator[list[RayNode]]:
    """Nodes on which Ray can be started, and which are empty after the block."""
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        environment.setenv("RAY_worker_niceness", "0")
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", "a token of at least some length for this test alone")
        folder = Path(tempfile.mkdtemp(prefix="bfly", dir="/tmp"))  # short: Ray makes paths of sockets of it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        found = [RayNode(node, folder) for node in nodes]
        for one in found:
            stack.callback(one.kill)
        yield found


@contextmanager
def served(node: Node, address: str) -> Iterator[Served]:
    """On the node's own loopback, whose ports are all free, since the network is this test's alone."""
    url = "http://127.0.0.1:8000"
    argv = [*BUTTERFLY, "serve", "smollm2", "--ray", address, "--port", "8000", "--context", "512", "--all-workers"]
    with running("butterfly serve --ray", argv, node) as server:
        wait_until_ready(server, f"{url}/ready", READY_S)
        yield Served(url, node)


def test_streams_go_on_while_a_ray_cluster_grows_and_its_parts_die() -> None:
    """Two nodes serve; a third appears; an actor is killed; a node is killed; one is drained. All texts are alike."""
    with (
        lab_or_skip(*alike("first", "second", "third", rate_bits_per_s=1e9, rtt_s=0.0005)) as lab,
        ray_nodes(list(lab.nodes.values())) as nodes,
    ):
        first, second, third = nodes
        address = first.start_head()
        second.join(address)
        with served(first.node, address) as server:
            assert {node_of(worker, nodes).node.name for worker in server.stages()} == {"first", "second"}
            undisturbed = server.answers()
            assert second.num_fetched_tensors() > 0

            assert server.answers(meanwhile=lambda: third.join(address)) == undisturbed
            newcomer = server.wait_until_whole(3).workers[-1]
            assert (newcomer.name, node_of(newcomer, nodes)) == ("worker-2", third)

            victim = server.stages()[-1]
            home = node_of(victim, nodes)
            assert server.answers(meanwhile=keeper_of(victim).kill) == undisturbed
            server.assert_it_was_lost_under_the_streams(victim)
            (back,) = (worker for worker in server.wait_until_whole(3).workers if worker.name == victim.name)
            assert back.pid != victim.pid
            assert node_of(back, nodes) is home

            victim = next(worker for worker in server.stages() if node_of(worker, nodes) is not first)
            assert server.answers(meanwhile=node_of(victim, nodes).kill) == undisturbed
            server.assert_it_was_lost_under_the_streams(victim)
            status = server.wait_until_whole(2)
            assert [worker.name for worker in status.workers if worker.phase == "lost"] == [victim.name]

            (leaving,) = (worker for worker in server.stages() if node_of(worker, nodes) is not first)
            assert server.answers(meanwhile=lambda: server.drain(leaving)) == undisturbed
            assert [node_of(worker, nodes) for worker in server.stages()] == [first]


def keeper_of(worker: WorkerStatus) -> psutil.Process:
    """The process of the actor that holds the worker."""
    keeper = psutil.Process(worker.pid).parent()
    assert keeper is not None
    assert "WorkerKeeper" in " ".join(keeper.cmdline())
    return keeper
