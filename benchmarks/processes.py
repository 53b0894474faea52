"""Server processes of a benchmark: started on a node or here, awaited, ended whatever happens."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.lab import Node

_STOP_S = 15.0  # more than any arm's own deadline for an orderly end
_LOOK_S = 0.05
_TAIL_BYTES = 2000
_FETCH = Path(__file__).with_name("fetch.py")


class ServerFailedError(Exception):
    """A server ended, or did not answer in time; the last lines that it printed are in the message."""


class ServerProcess(NamedTuple):
    """A process, where it runs (None: here, without an emulated network) and what it prints."""

    name: str
    node: Node | None
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def fail(self, reason: str) -> ServerFailedError:
        """Return the error that says what happened to this process, and its last words."""
        self.output.flush()
        size = self.output.seek(0, 2)
        self.output.seek(max(0, size - _TAIL_BYTES))
        return ServerFailedError(
            f"{self.name} {reason}; its last words:\n{self.output.read().decode(errors='replace')}"
        )


@contextmanager
def running(
    name: str, argv: Sequence[str], node: Node | None, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Run `argv` during the block, pinned to the node's cores: SIGTERM at its end, SIGKILL if that is not enough.

    It gets a process group of its own: Ctrl-C reaches only us, and we end servers in order.
    """
    with tempfile.TemporaryFile() as output:
        command = list(argv) if node is None else node.command(list(argv))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
        )
        try:
            yield ServerProcess(name, node, process, output)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_ready(server: ServerProcess, url: str, timeout_s: float) -> float:
    """Wait until `url` answers without an error status; return when it did, on the monotonic clock.

    Raises ServerFailedError when the server ends before, or after `timeout_s`.
    """
    command = _fetch_command(url, server.node, timeout_s)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as asking:
        try:
            while asking.poll() is None:
                if server.process.poll() is not None:
                    raise server.fail(f"ended with status {server.process.returncode}")
                _wait_a_little(asking)
            ready_s = time.monotonic()
            if asking.returncode:
                assert asking.stderr is not None
                raise server.fail(f"is not ready: {asking.stderr.read().decode(errors='replace').strip()}")
            return ready_s
        finally:
            asking.kill()


def _wait_a_little(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_LOOK_S)
    except subprocess.TimeoutExpired:
        return


def fetch(url: str, node: Node | None, timeout_s: float = 10.0) -> bytes:
    """Return the body at `url`, asked from inside the node's network (None: from here).

    Raises ServerFailedError when nobody answers without an error status within `timeout_s`.
    """
    answer = subprocess.run(_fetch_command(url, node, timeout_s), capture_output=True)
    if answer.returncode:
        raise ServerFailedError(answer.stderr.decode(errors="replace").strip())
    return answer.stdout


def _fetch_command(url: str, node: Node | None, timeout_s: float) -> list[str]:
    argv = [sys.executable, "-I", "-S", str(_FETCH), url, "--until-ready", str(timeout_s)]
    return argv if node is None else node.command(argv, pinned=False)
