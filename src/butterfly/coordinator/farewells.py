"""Last words to workers that were given up: one that only hung, or was cut off for a moment, joins again at once.

Nothing that such a worker sends is heard any more, so nothing of it is answered either: it is told once a second, over
the connection that there was, for somewhat longer than it would take to notice our silence by itself.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from butterfly.communication import Outbox
from butterfly.errors import CommunicationError
from butterfly.messages import Dismiss

_EVERY_S = 1.0
_LONG_ENOUGH_S = 12.0  # a worker waits 10 s for its coordinator


@dataclass(slots=True)
class _Farewell:
    outbox: Outbox
    next_s: float
    end_s: float


class Farewells:
    """At most one for each name. Times are on the monotonic clock of the caller."""

    def __init__(self) -> None:
        self._farewells: dict[str, _Farewell] = {}

    def begin(self, worker: str, outbox: Outbox, now_s: float) -> None:
        """Take over the connection, to close it in the end."""
        self.end(worker)
        self._farewells[worker] = _Farewell(outbox, now_s, now_s + _LONG_ENOUGH_S)
        self.go_on(now_s)

    def go_on(self, now_s: float) -> None:
        """Say again what is due. Never waits."""
        for worker, farewell in tuple(self._farewells.items()):
            if now_s >= farewell.end_s:
                self.end(worker)
            elif now_s >= farewell.next_s:
                farewell.next_s = now_s + _EVERY_S
                with suppress(CommunicationError):  # it is gone, or still cut off
                    farewell.outbox.send(Dismiss(epoch=0, workers=(worker,)), timeout_s=0.0)

    def end(self, worker: str) -> None:
        """Say no more to this one: it is back. Without effect for others."""
        farewell = self._farewells.pop(worker, None)
        if farewell is not None:
            farewell.outbox.close()

    def close(self) -> None:
        for worker in tuple(self._farewells):
            self.end(worker)
