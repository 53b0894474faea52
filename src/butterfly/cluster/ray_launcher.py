"""Workers on the nodes of a Ray cluster. Ray finds a node and starts them there; all else is as everywhere."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from butterfly.cluster.launcher import WorkerExit
from butterfly.cluster.ray_places import Places
from butterfly.cluster.ray_words import (
    Connected,
    KillWorker,
    NodesSeen,
    Order,
    RayNode,
    Refused,
    Report,
    StartWorker,
    StopAll,
    WorkerBegun,
    WorkerOver,
    report_decoder,
    to_line,
)
from butterfly.errors import LaunchError
from butterfly.messages import Invitation, encode_invitation

logger = logging.getLogger(__name__)

_TAIL_LINES = 20
_MAX_LAST_WORDS = 300  # characters
_LEAVE_S = 2.0  # for saying goodbye to Ray, when the workers have ended


class RayLauncher:
    """Runs each worker as a child of an actor on a node that Ray has.

    The actor runs `arguments`, and those that `options` has for the worker's name, with its node's own Python:
    Butterfly must be installed there. It hands over the invitation through a pipe, whose end it holds: when the actor
    dies, so does the worker; and when we die, so do all actors. Ray starts no worker again by itself.

    A node holds one worker for each of its GPUs, or `workers_per_node` on its CPUs, which share all of them.
    Invitations hold secrets and travel through Ray: its network must be trusted, or Ray told to use TLS.

    Not thread-safe. As a context manager it stops everything on the way out.
    """

    def __init__(
        self,
        address: str,
        arguments: Sequence[str],
        options: Mapping[str, Sequence[str]] | None = None,
        *,
        workers_per_node: int = 1,
        connect_timeout_s: float = 30.0,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 5.0,
    ) -> None:
        """Connect to the Ray cluster at `address` (HOST:PORT, or auto), of which this machine is a node.

        Raises LaunchError: Ray is not installed, nobody answers, or its version is another one.
        """
        self._address = address
        self._arguments = tuple(arguments)
        self._options = options or {}
        self._start_timeout_s, self._stop_timeout_s = start_timeout_s, stop_timeout_s
        self._places = Places(workers_per_node)
        self._pids: dict[str, int | None] = {}  # of the workers that were not polled as ended; None: not known yet
        self._exits: list[WorkerExit] = []
        self._is_connected = False
        self._driver: _Driver | None = _Driver(address, start_timeout_s)
        try:
            self._wait_connected(connect_timeout_s)
        except BaseException:
            self.stop(0.0)
            raise

    def start(self, invitation: Invitation) -> None:
        """Start one worker, where it ran before if there is room. Does not wait for Ray; see `poll`.

        Raises LaunchError when no node has a place for it.
        """
        name = invitation.name
        self._hear()
        if name in self._pids:
            raise LaunchError(f"worker {name} runs already")
        place = self._places.take(name)
        if self._driver is None:  # the connection was lost: perhaps Ray is there again
            self._driver = _Driver(self._address, self._start_timeout_s)
        self._pids[name] = None
        self._driver.tell(
            StartWorker(
                name=name,
                node=place.node,
                num_cpus=place.num_cpus,
                num_gpus=place.num_gpus,
                arguments=(*self._arguments, *self._options.get(name, ())),
                invitation=encode_invitation(invitation).decode(),
            )
        )

    def poll(self) -> list[WorkerExit]:
        """Return the workers that ended since the last call, those that Ray could not start, and those it lost."""
        self._hear()
        exits, self._exits = self._exits, []
        return exits

    def kill(self, name: str) -> None:
        """Have this worker's process ended by force, if it runs. Does not wait for Ray; `poll` tells of the end."""
        self._hear()
        if self._driver is not None and name in self._pids:
            self._driver.tell(KillWorker(name=name))

    def nodes(self) -> tuple[RayNode, ...]:
        """Return the nodes that are alive, as Ray said within the last second or two."""
        self._hear()
        return self._places.nodes

    def num_free_places(self) -> int:
        """How many more workers the cluster has room for: above zero when a node has appeared.

        Workers that have ended keep their places: `start` brings them back. One that ended with code 0 was told to,
        and keeps its place only as long as its node is there.
        """
        self._hear()
        return self._places.num_free()

    def pids(self) -> dict[str, int]:
        """Return the process ids, each on its own node, of the workers that run."""
        self._hear()
        return {name: pid for name, pid in self._pids.items() if pid is not None}

    def stop(self, timeout_s: float) -> None:
        """Have all workers told to end, then killed after half the time; then end the actors. Idempotent."""
        if self._driver is not None:
            self._driver.stop(timeout_s)
            self._driver = None
        self._pids.clear()
        self._exits.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self._stop_timeout_s)

    # ------------------------------------------------------------------------------------- hearing

    def _wait_connected(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not (self._is_connected and self._places.nodes):
            assert self._driver is not None
            try:
                self._take(self._driver.reports.get(timeout=max(0.0, deadline_s - time.monotonic())))
            except queue.Empty:
                raise LaunchError(f"no Ray cluster answered at {self._address} within {timeout_s:g} s") from None

    def _hear(self) -> None:
        while self._driver is not None:
            try:
                report = self._driver.reports.get_nowait()
            except queue.Empty:
                return
            try:
                self._take(report)
            except LaunchError as error:
                self._lose(str(error))

    def _take(self, report: Report | None) -> None:
        """Remember what was said. Raises LaunchError when the driver is gone, or says that it goes."""
        assert self._driver is not None
        if isinstance(report, Connected):
            self._is_connected = True
            logger.info("connected to Ray %s at %s", report.ray_version, self._address)
        elif isinstance(report, NodesSeen):
            self._places.see(report.nodes)
        elif isinstance(report, WorkerBegun):
            self._pids[report.name] = report.pid
            if report.niceness > 0:
                logger.warning(
                    "Ray lets worker %s wait for others (niceness %d): set RAY_worker_niceness=0 for `ray start`",
                    report.name,
                    report.niceness,
                )
        elif isinstance(report, WorkerOver):
            del self._pids[report.name]
            if report.returncode == 0:
                self._places.retire(report.name)
            self._exits.append(WorkerExit(report.name, report.returncode, report.output_tail))
        elif isinstance(report, Refused):
            raise LaunchError(report.reason)
        else:
            raise LaunchError(f"the connection to Ray at {self._address} ended: {self._driver.last_words()}")

    def _lose(self, reason: str) -> None:
        """The driver is gone, and with it all actors: every worker is over."""
        assert self._driver is not None
        self._driver.kill()
        self._driver = None
        self._exits += [WorkerExit(name, None, reason) for name in self._pids]
        self._pids.clear()


class _Driver:
    """The process that talks to Ray, and the threads that read what it says."""

    def __init__(self, address: str, start_timeout_s: float) -> None:
        self.reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()  # None: no more will come
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "butterfly.cluster.ray_driver", address, str(start_timeout_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C is for us, who end it in order
            )
        except OSError as error:
            raise LaunchError(f"cannot start a process to talk to Ray: {error.strerror}") from error
        self._readers = [
            threading.Thread(target=read, name=f"ray driver's {what}", daemon=True)
            for read, what in ((self._read_reports, "reports"), (self._read_complaints, "complaints"))
        ]
        for reader in self._readers:
            reader.start()

    def tell(self, order: Order) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and the end of its reports says so
            self._process.stdin.write(to_line(order))
            self._process.stdin.flush()

    def stop(self, timeout_s: float) -> None:
        """Let it end its workers and itself; kill it when it does not. Ray then ends the actors."""
        assert self._process.stdin is not None
        self.tell(StopAll(timeout_s=timeout_s))
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout_s + _LEAVE_S)
        except subprocess.TimeoutExpired:
            logger.warning("the process that talks to Ray does not end: killing it")
        self.kill()

    def kill(self) -> None:
        """End it if it still runs, and release what belongs to it."""
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        for reader in self._readers:
            reader.join(_LEAVE_S)

    def last_words(self) -> str:
        """The last line of what it complained of, once it has ended."""
        self._readers[1].join(_LEAVE_S)
        return next((line for line in reversed(self._tail) if line), "it said nothing")[:_MAX_LAST_WORDS]

    def _read_reports(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, suppress(msgspec.DecodeError):
            for line in lines:
                self.reports.put(report_decoder.decode(line))
        self.reports.put(None)

    def _read_complaints(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                self._tail.append(line)
                logger.debug("ray: %s", line)
