"""How far the tensors of a load are here, told to whoever waits for them."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done bytes, total bytes), several times a second; what it raises abandons the work."""


class Meter:
    """Counts bytes by digest, so that what has to start anew can go back."""

    def __init__(self, total_bytes: int, progress: Progress) -> None:
        self._total_bytes = total_bytes
        self._progress = progress
        self._done_bytes = 0
        self._by_digest: dict[str, int] = {}

    @property
    def done_bytes(self) -> int:
        return self._done_bytes

    def set(self, digest: str, done_bytes: int) -> None:
        """Say how much of a tensor is here, and look up."""
        self._done_bytes += done_bytes - self._by_digest.get(digest, 0)
        self._by_digest[digest] = done_bytes
        self.look_up()

    def look_up(self) -> None:
        """Report, though nothing may have changed: the one who waits may not want to any more."""
        self._progress(self._done_bytes, self._total_bytes)
