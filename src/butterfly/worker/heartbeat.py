"""Tells the coordinator four times a second that this process lives, even while a long step computes."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass

import psutil

from butterfly.communication import Outbox
from butterfly.errors import PeerTimeoutError
from butterfly.messages import Heartbeat


@dataclass(slots=True)
class Vitals:
    """What the main thread lets the heartbeat know. Single values, so no lock is needed."""

    epoch: int = 0
    kv_used_bytes: int = 0
    last_step_id: int = 0  # the newest step that was handed on


class Heart:
    """A thread with its own connection to the coordinator, because outboxes are for one thread."""

    def __init__(self, worker: str, coordinator: Outbox, vitals: Vitals, interval_s: float) -> None:
        self._worker = worker
        self._coordinator = coordinator
        self._vitals = vitals
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and wait for the thread. Idempotent."""
        self._stopped.set()
        self._thread.join()
        self._coordinator.close()

    def _beat(self) -> None:
        process = psutil.Process()
        while True:
            beat = Heartbeat(
                epoch=self._vitals.epoch,
                worker=self._worker,
                resident_bytes=int(process.memory_info().rss),
                kv_used_bytes=self._vitals.kv_used_bytes,
                last_step_id=self._vitals.last_step_id,
            )
            with suppress(PeerTimeoutError):  # the main thread judges a silent coordinator
                self._coordinator.send(beat, timeout_s=self._interval_s)
            if self._stopped.wait(self._interval_s):
                return
