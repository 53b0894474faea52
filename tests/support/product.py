"""The product as a user runs it: `python -m butterfly ...` in processes of its own, watched from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import httpx
import msgspec
import openai
import psutil

from butterfly.specs import ClusterStatus

BUTTERFLY = [sys.executable, "-m", "butterfly"]
PATIENCE_S = 60.0  # for what takes seconds on an idle machine, but tests may share theirs
ENDING_S = 10.0  # a server and its workers are gone within this, however busy the machine
MODEL = "smollm2"


def run(*arguments: str, stdin: str = "", timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a session of its own, and make sure that it left no process behind."""
    command = [*BUTTERFLY, *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, complaint = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert not session_members(process.pid), f"{arguments} left processes behind"
    return subprocess.CompletedProcess(command, process.returncode, output, complaint)


def session_members(session: int) -> list[psutil.Process]:
    """Processes of a session, orphans included: what a command started, whoever is its parent now."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue  # it ended while we looked
    return found


def eventually(is_so: Callable[[], bool], within_s: float) -> bool:
    """Whether it becomes so before the deadline."""
    deadline_s = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline_s:
            return False
        threading.Event().wait(0.02)
    return True


class Server:
    """`butterfly serve` with local workers on a free port. Leaving the block stops it as Ctrl-C does."""

    def __init__(
        self, *options: str, workers: int = 3, model: str = MODEL, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment`: beside what is inherited."""
        self._complaints = tempfile.TemporaryFile(mode="a+")  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            [*BUTTERFLY, "serve", model, "--workers", str(workers), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self._num_workers = workers
        self.announcement = ""
        self.url = ""

    def wait_loading(self) -> list[psutil.Process]:
        """Return the workers as soon as all of them are started."""
        assert eventually(lambda: len(self.workers()) == self._num_workers, PATIENCE_S), self.complaints()
        return self.workers()

    def wait_ready(self) -> Self:
        """Read what it prints up to the address that it announces."""
        self.url = self.read_to(r"at (http://\S+)/v1")
        return self

    def read_to(self, pattern: str) -> str:
        """Read what it prints up to a line with the pattern; return the pattern's first group."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.announcement += line
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError(f"the server ended with code {self.process.wait()}: {self.complaints()}")

    def workers(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return children

    def status(self) -> ClusterStatus:
        return msgspec.json.decode(httpx.get(f"{self.url}/status").content, type=ClusterStatus)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)

    def complaints(self) -> str:
        """What it wrote on standard error so far."""
        self._complaints.seek(0)
        return self._complaints.read()

    def interrupt(self) -> None:
        """Ctrl-C: the terminal signals the process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_gone(self, within_s: float = ENDING_S) -> int:
        """Return the exit code once every process of the session has ended."""
        code = self.process.wait(within_s)
        assert eventually(lambda: not session_members(self.process.pid), within_s), "workers outlived the server"
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                self.interrupt()
                self.process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            if error is None:
                raise
        finally:
            for process in session_members(self.process.pid):
                process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self._complaints.close()
