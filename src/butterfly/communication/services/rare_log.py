"""Log lines that strangers can cause: one a second, with the number of those left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class RareLog:
    """Writes warnings, at most one within `interval_s`. Used by one thread."""

    def __init__(
        self, logger: logging.Logger, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger, self._interval_s, self._clock = logger, interval_s, clock
        self._next_s = clock()
        self._num_left_out = 0

    def warning(self, text: str) -> None:
        now_s = self._clock()
        if now_s < self._next_s:
            self._num_left_out += 1
            return
        left_out = f" (and {self._num_left_out} more since the last line)" if self._num_left_out else ""
        self._logger.warning("%s%s", text, left_out)
        self._next_s, self._num_left_out = now_s + self._interval_s, 0
