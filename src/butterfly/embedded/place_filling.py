"""Workers for places that appear while the server runs, such as new nodes of a Ray cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Protocol

from butterfly.cluster import Deadlines, Launcher, WorkerExit
from butterfly.embedded.workforce import worker_name
from butterfly.errors import LaunchError
from butterfly.messages import Invitation
from butterfly.specs import ClusterPhase, WorkerStatus

logger = logging.getLogger(__name__)


class RoomyLauncher(Launcher, Protocol):
    """A launcher that knows how many workers it has room for."""

    def num_free_places(self) -> int:
        """How many more workers could be started; those that have ended keep their places."""


class Members(Protocol):
    """What is wanted of the cluster state."""

    @property
    def phase(self) -> ClusterPhase: ...

    def snapshot(self) -> tuple[WorkerStatus, ...]: ...


class PlaceFiller:
    """A launcher that starts one more worker for each place that is free, as a newcomer to the cluster.

    The cluster state has those started again that it `expected`, once the cluster has been ready. All others that end
    are started again here, after pauses that grow, unless they ended with code 0, as one does that was told to. Of a
    worker that has not joined yet the state knows nothing, and is not told of its end.

    Used by the coordinator's thread alone, which polls it several times a second.
    """

    def __init__(
        self,
        launcher: RoomyLauncher,
        invite: Callable[[str], None],
        members: Members,
        expected: Collection[str],
        deadlines: Deadlines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`invite(name)` starts a worker through the launcher, with a key; it raises LaunchError."""
        self._launcher, self._invite, self._members = launcher, invite, members
        self._expected, self._deadlines, self._clock = frozenset(expected), deadlines, clock
        self._next_number = len(expected)
        self._has_served = False
        self._started_s: dict[str, float] = {}
        self._pauses_s: dict[str, float] = {}  # before the last start of each that has ended
        self._due_s: dict[str, float] = {}  # who is to be started, and when

    def start(self, invitation: Invitation) -> None:
        self._due_s.pop(invitation.name, None)
        self._launcher.start(invitation)

    def poll(self) -> list[WorkerExit]:
        """As every launcher's, of workers that the state knows; and start who is due, and who there is room for."""
        now_s = self._clock()
        self._has_served = self._has_served or self._members.phase in ("ready", "moving")
        exits = self._launcher.poll()
        for ended in exits:
            if ended.returncode != 0 and not (ended.name in self._expected and self._has_served):
                self._plan_start(ended.name, now_s)
        for name in [name for name, due_s in self._due_s.items() if due_s <= now_s]:
            self._start(name, now_s)
        for _ in range(self._launcher.num_free_places()):
            name = worker_name(self._next_number)
            self._next_number += 1
            logger.warning("there is room for another worker: starting %s", name)
            self._start(name, now_s)
        known = {member.name for member in self._members.snapshot()}
        return [ended for ended in exits if ended.name in known]

    def kill(self, name: str) -> None:
        self._launcher.kill(name)

    def stop(self, timeout_s: float) -> None:
        self._launcher.stop(timeout_s)

    def _start(self, name: str, now_s: float) -> None:
        self._due_s.pop(name, None)
        self._started_s[name] = now_s
        try:
            self._invite(name)
        except LaunchError as error:
            logger.warning("%s was not started: %s", name, error)
            self._plan_start(name, now_s)

    def _plan_start(self, name: str, now_s: float) -> None:
        before_s = self._pauses_s.get(name, 0.0)
        if now_s - self._started_s.get(name, now_s) >= self._deadlines.restart_forgiven_s:
            before_s = 0.0
        pause_s = min(2 * before_s, self._deadlines.longest_restart_pause_s) or self._deadlines.restart_pause_s
        self._pauses_s[name], self._due_s[name] = pause_s, now_s + pause_s
