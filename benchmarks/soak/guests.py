"""Workers that join a soaked server from outside by its join line, leave and die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from butterfly.specs import ClusterStatus

BUTTERFLY = (sys.executable, "-m", "butterfly")
_JOIN_S, _LEAVE_S, _END_S = 120.0, 60.0, 20.0
_TAIL_BYTES = 600
_ORDERLY = (0, 128 + signal.SIGTERM)  # the latter when it had not joined yet


class Guest(NamedTuple):
    name: str
    process: subprocess.Popen[bytes]
    joined_by_s: float  # deadlines on the monotonic clock


class Guests:
    """Starts and ends them; afterwards none runs. `problems` tells of those that did not do as they were told."""

    def __init__(self, join_line: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {
            **environment,
            "BUTTERFLY_JOIN": join_line,
            "BUTTERFLY_CACHE": str(folder / "guests-cache"),
        }
        self._here: dict[str, Guest] = {}
        self._joining: set[str] = set()
        self._leaving: dict[str, tuple[Guest, float]] = {}
        self._num_named = 0
        self._retired: list[str] = []  # names with a state folder and no process
        self.names: dict[int, str] = {}  # of all that ever ran, by process id
        self.problems: list[str] = []

    @property
    def here(self) -> list[str]:
        """The names of those that run and were not told to end."""
        return list(self._here)

    @property
    def have_joined(self) -> bool:
        """Whether all of them were seen in the cluster, measured and with a part in it or on standby."""
        return not self._joining

    @property
    def retired(self) -> list[str]:
        return list(self._retired)

    def pids(self) -> list[int]:
        """Return the processes that run. Callable from any thread."""
        here, leaving = list(self._here.values()), list(self._leaving.values())
        guests = [*here, *(guest for guest, _ in leaving)]
        return [guest.process.pid for guest in guests if guest.process.poll() is None]

    def start(self, retired: str = "") -> str:
        """Start one that was there before, or a new one; return its name."""
        if retired:
            self._retired.remove(retired)
        else:
            self._num_named += 1
        name = retired or f"guest-{self._num_named}"
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                [*BUTTERFLY, "worker", "--name", name, "--threads", "1", "--memory", "1G"],
                env={**self._environment, "BUTTERFLY_STATE": str(self._folder / name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self._here[name] = Guest(name, process, time.monotonic() + _JOIN_S)
        self._joining.add(name)
        self.names[process.pid] = name
        return name

    def kill(self, name: str) -> None:
        guest = self._pop(name)
        guest.process.kill()
        guest.process.wait()
        self._retired.append(name)

    def terminate(self, name: str) -> None:
        guest = self._pop(name)
        guest.process.terminate()
        self._leaving[name] = guest, time.monotonic() + _LEAVE_S

    def drain(self, name: str, url: str) -> str:
        """Let it leave; return what the command says when it may not."""
        command = [*BUTTERFLY, "drain", name, "--url", url]
        try:
            asked = subprocess.run(command, env=self._environment, capture_output=True, timeout=_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.problems.append(f"`butterfly drain {name}` did not end within {_LEAVE_S:g} s")
            return "not within the deadline"
        if asked.returncode:
            return asked.stderr.decode(errors="replace").strip()[-_TAIL_BYTES:]
        self._leaving[name] = self._pop(name), time.monotonic() + _LEAVE_S
        return ""

    def look(self, status: ClusterStatus) -> None:
        """Note who joined, who ended, and who did not within its deadline."""
        now_s = time.monotonic()
        joined = {worker.name for worker in status.workers if worker.phase in ("loading", "ready", "standby")}
        self._joining -= joined
        for guest in list(self._here.values()):
            if guest.process.poll() is not None:
                self._retire(self._pop(guest.name), f"ended unasked with {guest.process.returncode}")
            elif guest.name in self._joining and now_s > guest.joined_by_s:
                self._joining.discard(guest.name)
                self.problems.append(f"{guest.name} did not join within {_JOIN_S:g} s: {self._tail(guest.name)}")
        for name, (guest, deadline_s) in list(self._leaving.items()):
            code = guest.process.poll()
            if code is not None or now_s > deadline_s:
                del self._leaving[name]
                trouble = "" if code in _ORDERLY else f"was to leave, and ended with {code}"
                self._retire(guest, trouble if code is not None else f"did not leave within {_LEAVE_S:g} s")

    def dismiss(self) -> None:
        """Tell all that run to leave."""
        for name in self.here:
            self.terminate(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """SIGTERM to all, SIGKILL to who takes longer than the deadline."""
        guests = [*self._here.values(), *(guest for guest, _ in self._leaving.values())]
        for guest in guests:
            guest.process.terminate()
        deadline_s = time.monotonic() + _END_S
        for guest in guests:
            try:
                guest.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.problems.append(f"{guest.name} did not end within {_END_S:g} s of SIGTERM")
                guest.process.kill()
                guest.process.wait()

    def _pop(self, name: str) -> Guest:
        self._joining.discard(name)
        return self._here.pop(name)

    def _retire(self, guest: Guest, trouble: str) -> None:
        if trouble:
            self.problems.append(f"{guest.name} {trouble}: {self._tail(guest.name)}")
        if guest.process.poll() is None:
            guest.process.kill()
            guest.process.wait()
        self._retired.append(guest.name)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _tail(self, name: str) -> str:
        with self._log(name).open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip()


def kill_local(status: ClusterStatus, name: str) -> bool:
    """SIGKILL to a worker that the server has started. False when it does not run."""
    for worker in status.workers:
        if worker.name == name and worker.phase != "lost" and worker.pid:
            try:
                os.kill(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True
    return False
