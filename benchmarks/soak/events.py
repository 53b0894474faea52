"""What happens to a soaked cluster next: chosen at random, and done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.bench import tell
from benchmarks.faults.running import Cluster
from benchmarks.processes import ServerFailedError
from benchmarks.soak.guests import Guests, kill_local
from benchmarks.soak.record import EventKind, EventRecord
from butterfly.specs import ClusterStatus

MOST_GUESTS = 2
VICTIM, SPARED = "worker-1", "worker-0"  # local ones; one is left alone, to see what a long life does to it
_BETWEEN_S = (15.0, 25.0)
_LOOK_S = 1.0
_RETURN_SHARE = 0.5  # of those that join: one that was there before


def next_event(chance: random.Random, num_guests: int, can_kill_local: bool) -> EventKind:
    """Draw one that is possible. Whoever may join does so half of the time, so that there is somebody to lose."""
    possible: list[EventKind] = ["kill local"] if can_kill_local else []
    if num_guests:
        possible += ["drain", "terminate", "kill joined"]
    if num_guests < MOST_GUESTS:
        possible += ["join"] * max(1, len(possible))
    return chance.choice(possible)


class Disturber:
    """Does one thing after another to the cluster until it is over."""

    def __init__(self, on: Cluster, guests: Guests, seed: int) -> None:
        self._on, self._guests = on, guests
        self._chance = random.Random(seed)
        self._started_s = time.monotonic()
        self.events: list[EventRecord] = []
        self.names: dict[int, str] = {}  # of workers, by process id
        self.model_bytes: Mapping[int, int] = {}  # of workers that live, by process id: weights and KV cache

    def run(self, until_s: float) -> None:
        """Disturb until then, on the monotonic clock. Raises ServerFailedError when the server does not answer."""
        while True:
            status = self._look_for(self._chance.uniform(*_BETWEEN_S), until_s)
            if time.monotonic() >= until_s:
                return
            live = {worker.name for worker in status.workers if worker.phase in ("ready", "standby", "loading")}
            kind = next_event(self._chance, len(self._guests.here), {VICTIM, SPARED} <= live)
            worker, note = self._do(kind, status)
            self.events.append(EventRecord(kind, worker, time.monotonic() - self._started_s, note))
            tell(f"    {len(self.events)}: {kind} {worker}{note and f' ({note})'}; the cluster was {status.phase}")

    def _look_for(self, pause_s: float, until_s: float) -> ClusterStatus:
        """Watch for a while; return what there was at its end."""
        end_s = min(time.monotonic() + pause_s, until_s)
        while True:
            status = self._on.status()
            self.names |= {worker.pid: worker.name for worker in status.workers if worker.pid}
            self.model_bytes = {one.pid: one.weight_bytes + one.kv_used_bytes for one in status.workers}
            self._guests.look(status)
            if time.monotonic() >= end_s:
                return status
            time.sleep(_LOOK_S)

    def _do(self, kind: EventKind, status: ClusterStatus) -> tuple[str, str]:
        """Return whom it happened to, and what refused it."""
        if kind == "join":
            return self._guests.start(self._returning(self._guests.retired)), ""
        if kind == "kill local":
            return VICTIM, "" if kill_local(status, VICTIM) else "it had just ended"
        guest = self._chance.choice(self._guests.here)
        if kind == "drain":
            return guest, self._guests.drain(guest, self._on.url)
        leave: Callable[[str], None] = self._guests.kill if kind == "kill joined" else self._guests.terminate
        leave(guest)
        return guest, ""

    def _returning(self, retired: Sequence[str]) -> str:
        return self._chance.choice(retired) if retired and self._chance.random() < _RETURN_SHARE else ""


def rehearse(on: Cluster, guests: Guests, timeout_s: float) -> str:
    """Let one come and go; return what is wrong with that.

    The first one makes the server open what it then keeps (pyzmq, a thread and a context for large answers).
    """
    guests.start()
    deadline_s = time.monotonic() + timeout_s
    while not guests.have_joined and time.monotonic() < deadline_s:
        guests.look(on.status())
        time.sleep(_LOOK_S)
    return settle(on, guests, timeout_s)


def settle(on: Cluster, guests: Guests, timeout_s: float) -> str:
    """Let the guests leave, and wait until all is as before they came; return what is wrong when that does not come."""
    guests.dismiss()
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            status = on.status()
        except ServerFailedError as error:
            return str(error)
        guests.look(status)
        live = {worker.name: worker.phase for worker in status.workers if worker.phase != "lost"}
        is_whole = live.keys() == {VICTIM, SPARED} and all(phase in ("ready", "standby") for phase in live.values())
        if status.phase == "ready" and is_whole and not guests.pids():
            return ""
        time.sleep(_LOOK_S)
    workers = ", ".join(f"{one.name} {one.phase}" for one in status.workers)
    return f"the cluster is {status.phase} after {timeout_s:g} s without an event: {status.detail}: {workers}"
