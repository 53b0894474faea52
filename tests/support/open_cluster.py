"""A server that workers may join, and workers that do: the real commands, each with folders of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import msgspec
import openai
import psutil

from butterfly.communication import KeyPair
from butterfly.specs import ClusterStatus, WorkerStatus
from tests.support.product import BUTTERFLY, ENDING_S, PATIENCE_S, Server, eventually, session_members

ADMIN_KEY, GUEST_KEY = "administrators-key", "somebody-elses-key"

_TEXT = "the butterfly flew over a quiet garden while rain began to fall on old stones"


def free_ports() -> int:
    """The first of two free ports in a row, as `--listen` wants them."""
    while True:
        with closing(socket.create_server(("127.0.0.1", 0))) as first:
            port = int(first.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
        return port


class OpenServer(Server):
    """`butterfly serve --listen 127.0.0.1:PORT`, with API keys of an administrator and of a guest."""

    def __init__(self, home: Path, *options: str, workers: int, port: int = 0) -> None:
        self.home, self.port = home, port or free_ports()
        environment = {
            "BUTTERFLY_STATE": str(home),
            "BUTTERFLY_API_KEY": f"admin: {ADMIN_KEY}, guest: {GUEST_KEY}",
            "OMP_NUM_THREADS": "1",
        }
        listening = ("--listen", f"127.0.0.1:{self.port}", "--threads", "1", "--prefix-reuse", "off")
        super().__init__(*listening, *options, workers=workers, environment=environment)
        self.line = ""

    def wait_open(self) -> Self:
        """Read the line by which workers join."""
        self.line = self.read_to(r"--join '(butterfly://\S+)'")
        return self

    def get(self, path: str, key: str = ADMIN_KEY) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S)

    def status(self) -> ClusterStatus:
        return msgspec.json.decode(self.get("/status").content, type=ClusterStatus)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=ADMIN_KEY, max_retries=0, timeout=PATIENCE_S)

    def worker(self, name: str) -> WorkerStatus | None:
        return next((worker for worker in self.status().workers if worker.name == name), None)

    def wait_for(self, name: str, *phases: str) -> None:
        """Until the worker is in one of these phases, and the cluster ready."""

        def is_so() -> bool:
            status = self.status()
            return status.phase == "ready" and any(one.name == name and one.phase in phases for one in status.workers)

        assert eventually(is_so, PATIENCE_S), f"{self.status().detail}\n{self.complaints()}"

    def stages(self) -> list[str]:
        """The workers of the plan in force, in pipeline order."""
        plan = self.status().plan
        assert plan is not None
        return [stage.worker for stage in plan.stages]

    def drain(self, worker: str, key: str = ADMIN_KEY, content_type: str = "application/json") -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type}
        body = msgspec.json.encode({"worker": worker})
        return httpx.post(f"{self.url}/cluster/drain", content=body, headers=headers, timeout=PATIENCE_S)

    def manage_tokens(self, *arguments: str) -> str:
        """`butterfly token ...` on the server's machine; what it printed."""
        environment = {**os.environ, "BUTTERFLY_STATE": str(self.home)}
        done = subprocess.run(
            [*BUTTERFLY, "token", *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def worker_command(name: str, cache: Path, *options: str) -> list[str]:
    limits = ("--memory", "1G", "--threads", "1", "--cache-dir", str(cache), "--log-level", "info")
    return [*BUTTERFLY, "worker", "--join", "-", "--name", name, *limits, *options]


def environment_of(folder: Path) -> Mapping[str, str]:
    return {**os.environ, "BUTTERFLY_STATE": str(folder / "state"), "OMP_NUM_THREADS": "1"}


class JoinedWorker:
    """`butterfly worker --join -` in a session of its own. Leaving the block kills it, if it still runs."""

    def __init__(self, name: str, folder: Path, line: str, prefix: Sequence[str] = ()) -> None:
        """`prefix`: words before the command."""
        self.name, self.folder, self._line, self._prefix = name, folder, line, prefix
        self.cache = folder / "cache"
        folder.mkdir(exist_ok=True)
        self._log = tempfile.TemporaryFile(mode="a+")  # noqa: SIM115 - closed by __exit__
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self._prefix, *worker_command(self.name, self.cache)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment_of(self.folder),
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(self._line.encode() + b"\n")
        return process

    def start_anew(self) -> None:
        """Kill it, and start it as the same one."""
        self.kill()
        self.process = self._start()

    def kill(self) -> None:
        for process in session_members(self.process.pid):
            process.kill()
        self.process.wait(ENDING_S)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(ENDING_S)

    def log(self) -> str:
        """What it wrote so far."""
        self._log.seek(0)
        return self._log.read()

    def keys(self) -> KeyPair:
        """The pair that it keeps: with it, a test can be this worker for others."""
        (path,) = self.folder.glob(f"state/worker/*/{self.name}.json")
        stored = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        return KeyPair(public_key=stored["public_key"], secret_key=stored["secret_key"])

    def ports(self) -> list[int]:
        """Where it listens."""
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return sorted(one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN)

    def cached_files(self) -> dict[str, int]:
        """The complete tensors in its cache, each with the time of its last change."""
        folder = self.cache / "tensors"
        files = folder.iterdir() if folder.is_dir() else ()
        return {path.name: path.stat().st_mtime_ns for path in files if len(path.name) == 64}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._log.close()


def prompts(count: int, num_words: int = 12) -> list[str]:
    words = _TEXT.split()
    return [
        " ".join(words[(number + place * (number + 1)) % len(words)] for place in range(num_words))
        for number in range(count)
    ]
