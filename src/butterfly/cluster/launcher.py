"""Starting workers: the small interface behind which local processes (now) and Ray (later) stand."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from butterfly.errors import LaunchError
from butterfly.messages import Invitation, encode_invitation

logger = logging.getLogger(__name__)

_TAIL_LINES = 20
_DRAIN_S = 1.0  # for the last lines of a process that has just ended


class WorkerExit(NamedTuple):
    """A worker that ended, whatever the reason."""

    name: str
    returncode: int | None  # negative: the signal that killed it; None: nobody saw its end
    output_tail: str  # its last lines on standard error, oldest first


class Launcher(Protocol):
    """Starts worker processes; whether they join, and how they fare, is for others to find out."""

    def start(self, invitation: Invitation) -> None:
        """Start one worker. Raises LaunchError naming it when that is not possible."""

    def poll(self) -> list[WorkerExit]:
        """Return the workers that ended since the last call. Never waits for one to end."""

    def kill(self, name: str) -> None:
        """End this worker's process by force, if it runs: it may only hang. `poll` will tell of it."""

    def stop(self, timeout_s: float) -> None:
        """End all workers, by force if need be, within about `timeout_s`. Idempotent."""


class LocalLauncher:
    """Runs workers as child processes of this one.

    `command`, behind the words that `prefixes` has for a worker's name (which may start it elsewhere, as ssh does) and
    before those that `options` has, reads an invitation as one line from its standard input. We keep our end of
    that pipe open: should this process be killed, the kernel closes it and the workers see it. They run in process
    groups of their own, so that Ctrl-C reaches only us and we end them in order.

    Not thread-safe. As a context manager it stops everything on the way out.
    """

    def __init__(
        self,
        command: Sequence[str],
        prefixes: Mapping[str, Sequence[str]] | None = None,
        options: Mapping[str, Sequence[str]] | None = None,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self._command = list(command)
        self._prefixes = prefixes or {}
        self._options = options or {}
        self._stop_timeout_s = stop_timeout_s
        self._workers: dict[str, _LocalWorker] = {}
        self.on_exit: Callable[[], None] = lambda: None
        """Called soon after a worker has ended, on another thread: `poll` has news. Set it before `start`."""

    def start(self, invitation: Invitation) -> None:
        if invitation.name in self._workers:
            raise LaunchError(f"worker {invitation.name} runs already")
        name = invitation.name
        command = [*self._prefixes.get(name, ()), *self._command, *self._options.get(name, ())]
        self._workers[invitation.name] = _LocalWorker(invitation, command, self.on_exit)

    def poll(self) -> list[WorkerExit]:
        ended = [worker for worker in self._workers.values() if worker.returncode() is not None]
        for worker in ended:
            del self._workers[worker.name]
        return [worker.collect() for worker in ended]

    def kill(self, name: str) -> None:
        worker = self._workers.get(name)
        if worker is not None:
            worker.process.kill()

    def stop(self, timeout_s: float) -> None:
        """Close the pipes, then SIGTERM after half the time, then SIGKILL. Never leaves a process."""
        deadline_s = time.monotonic() + timeout_s
        workers = list(self._workers.values())
        self._workers.clear()
        for worker in workers:
            worker.close_pipe()
        patient = [worker for worker in workers if not worker.ended_by(deadline_s - timeout_s / 2)]
        for worker in patient:
            worker.process.terminate()
        stubborn = [worker for worker in patient if not worker.ended_by(deadline_s)]
        for worker in stubborn:
            logger.warning("worker %s does not end: killing it", worker.name)
            worker.process.kill()
        for worker in workers:
            worker.collect()

    def pids(self) -> dict[str, int]:
        """Return the process ids of the workers that were not polled as ended."""
        return {worker.name: worker.process.pid for worker in self._workers.values()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self._stop_timeout_s)


class _LocalWorker:
    """One child process, its pipe, and the thread that reads what it prints."""

    def __init__(self, invitation: Invitation, command: Sequence[str], on_exit: Callable[[], None]) -> None:
        self.name = invitation.name
        self._on_exit = on_exit
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        except OSError as error:
            raise LaunchError(f"cannot start worker {self.name} with {command[0]}: {error.strerror}") from error
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._reader = threading.Thread(target=self._read, name=f"output of {self.name}", daemon=True)
        self._reader.start()
        self._hand_over(invitation)

    def returncode(self) -> int | None:
        return self.process.poll()

    def ended_by(self, deadline_s: float) -> bool:
        try:
            self.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def close_pipe(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended before it read its invitation
            self.process.stdin.close()

    def collect(self) -> WorkerExit:
        """Wait for a process that has ended or was killed, and release what belongs to it."""
        returncode = self.process.wait()
        self.close_pipe()
        self._reader.join(_DRAIN_S)  # longer only if somebody else inherited the pipe
        return WorkerExit(self.name, returncode, "\n".join(self._tail))

    def _hand_over(self, invitation: Invitation) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already; poll() will say so, with its last words
            self.process.stdin.write(encode_invitation(invitation))
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip()
                self._tail.append(line)
                logger.info("%s: %s", self.name, line)
        if self.ended_by(time.monotonic() + _DRAIN_S):  # else it only closed its output: whoever polls finds out
            self._on_exit()
