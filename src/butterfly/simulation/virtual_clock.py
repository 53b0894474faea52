"""Time that passes only from event to event."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """An event heap. Events of the same time happen in the order in which they were booked."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._num_booked = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Book `event` for `time_s`; what is booked for the past happens next."""
        heapq.heappush(self._events, (max(time_s, self.now_s), self._num_booked, event))
        self._num_booked += 1

    def every(self, interval_s: float, event: Callable[[], bool]) -> None:
        """Book `event` for each interval from now on, until it returns False."""

        def happen() -> None:
            if event():
                self.at(self.now_s + interval_s, happen)

        self.at(self.now_s + interval_s, happen)

    def advance(self) -> None:
        """Go to the next event and let it happen. Raises IndexError when none is booked."""
        self.now_s, _, event = heapq.heappop(self._events)
        event()
