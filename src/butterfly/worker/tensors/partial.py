"""A tensor on its way into the cache: a locked file that grows from its beginning, and survives its writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from butterfly.blobs import new_hasher
from butterfly.worker.tensors.troubles import cache_troubles

_READ_BYTES = 1 << 20


class PartialTensor:
    """Owns an open, locked file, and unlocks it when closed. Raises WorkerError for what the disk refuses."""

    def __init__(self, file: int, path: Path, target: Path, num_bytes: int, *, keep: bool) -> None:
        """`target` is the complete file, named by the digest of its bytes; `num_bytes` its size.

        `keep` says whether somebody can find it again when it is closed before it is complete.
        """
        self.target = target
        self.num_bytes = num_bytes
        self.num_resumed_bytes = 0  # that were there when it was opened
        self._file = file
        self._path = path
        self._keep = keep
        self._hasher = new_hasher()
        self._done_bytes = 0
        self._closed = False

    @property
    def digest(self) -> str:
        return self.target.name

    @property
    def done_bytes(self) -> int:
        return self._done_bytes

    @property
    def is_full(self) -> bool:
        return self._done_bytes == self.num_bytes

    def resume(self, while_hashing: Callable[[], None]) -> None:
        """Take over what the file holds already."""
        with cache_troubles(self.target.parent, self.num_bytes):
            if os.fstat(self._file).st_size > self.num_bytes:
                os.ftruncate(self._file, 0)
            while chunk := os.pread(self._file, _READ_BYTES, self._done_bytes):
                self._hasher.update(chunk)
                self._done_bytes += len(chunk)
                while_hashing()
        self.num_resumed_bytes = self._done_bytes

    def append(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with cache_troubles(self.target.parent, self.num_bytes - self._done_bytes):
            while view:
                num_written = os.pwrite(self._file, view, self._done_bytes)
                self._hasher.update(view[:num_written])
                self._done_bytes += num_written
                view = view[num_written:]

    def complete(self) -> bool:
        """Put it into the cache if its bytes are right, and return whether they are; else it is empty again."""
        if self._hasher.hexdigest() != self.digest:
            self._start_anew()
            return False
        with cache_troubles(self.target.parent, 0):
            self._path.replace(self.target)  # atomic: who finds the complete file finds all of it
        self._keep = True
        self.close()
        return True

    def close(self) -> None:
        """Leave what is there to the next one who resumes it. Idempotent."""
        if not self._closed:
            self._closed = True
            if not self._keep:
                self._path.unlink(missing_ok=True)
            os.close(self._file)

    def _start_anew(self) -> None:
        with cache_troubles(self.target.parent, self.num_bytes):
            os.ftruncate(self._file, 0)
        self._hasher = new_hasher()
        self._done_bytes = self.num_resumed_bytes = 0
