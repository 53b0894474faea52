"""Tensors in files that are named by their digests, shared by the workers of a machine.

    <folder>/tensors/DIGEST          complete, and checked
    <folder>/tensors/DIGEST.part     on its way; locked by who writes it
    <folder>/tensors/in-use/*.json   what each living worker needs (see `leases`)
    <folder>/tensors/lock            held while leases change and files go

A file is not synced to the disk before it gets its final name: what a power cut leaves of it has another size or
another time of change, and is then hashed again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from butterfly.blobs import FileDigests, FileRange, is_digest
from butterfly.errors import ModelFormatError
from butterfly.worker.tensors.leases import Lease, read_leases
from butterfly.worker.tensors.locking import locked, try_lock
from butterfly.worker.tensors.partial import PartialTensor
from butterfly.worker.tensors.troubles import cache_troubles, disk_full, free_bytes, too_much

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_S = 10.0  # it is held for milliseconds, unless its holder is stopped
_PARTIAL = ".part"


class _File(NamedTuple):
    path: Path
    digest: str
    num_bytes: int
    used_ns: int


class TensorCache:
    """At most `limit_bytes` of tensors in `folder`; nothing is written before it is needed.

    For one thread, but for `peek`.
    """

    def __init__(self, folder: Path, limit_bytes: int, digests: FileDigests) -> None:
        self._folder = folder / "tensors"
        self._limit_bytes = limit_bytes
        self._digests = digests
        self._leases = self._folder / "in-use"
        self._lease = Lease(self._leases)

    def peek(self, digest: str) -> FileRange | None:
        """Return the complete tensor if it is there, without a look at its bytes. Callable from any thread."""
        path = self._folder / digest
        try:
            return FileRange(str(path), 0, path.stat().st_size) if is_digest(digest) else None
        except OSError:
            return None

    def find(self, digest: str, num_bytes: int, while_hashing: Callable[[], None] | None = None) -> FileRange | None:
        """Return the tensor if it is here complete and unharmed; what is harmed is removed.

        Its bytes are hashed again only when the file has changed since they were.
        """
        where = self.peek(digest)
        if where is None:
            return None
        try:
            is_whole = where.num_bytes == num_bytes and self._digests.digest(where, while_hashing) == digest
        except ModelFormatError as error:  # another process has just removed it, or we may not read it
            logger.debug("not in the cache: %s", error)
            return None
        with suppress(OSError):  # of a cache that we may only read
            if is_whole:
                os.utime(where.path, ns=(time.time_ns(), os.stat(where.path).st_mtime_ns))
            else:
                logger.warning("%s is damaged, and fetched again", where.path)
                os.unlink(where.path)
        return where if is_whole else None

    def hold(self, needs: Mapping[str, int]) -> None:
        """Keep these (sizes by digest), and make room for what of them is not here; what was held before may go.

        Raises WorkerError when the limit or the disk does not allow it, or the folder cannot be written.
        """
        needed_bytes = sum(needs.values())
        with cache_troubles(self._folder, needed_bytes):
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / "lock", _LOCK_TIMEOUT_S):
                self._lease.clear()
                self._make_room(needs, read_leases(self._leases))
                self._lease.write(needs)

    def open_partial(
        self, digest: str, num_bytes: int, while_hashing: Callable[[], None], *, private: bool = False
    ) -> PartialTensor | None:
        """Return the tensor as far as it came; None when another process is writing it, or has just completed it.

        `private`: a file that no other process knows, for when that other one does not get on.
        """
        target = self._folder / digest
        path = target.with_name(f"{digest}.{uuid4().hex[:8]}{_PARTIAL}") if private else self._shared_partial(digest)
        with cache_troubles(self._folder, num_bytes):
            file = try_lock(path)
        if file is None:
            return None
        if not private and self.peek(digest) is not None:
            path.unlink(missing_ok=True)
            os.close(file)
            return None
        partial = PartialTensor(file, path, target, num_bytes, keep=not private)
        try:
            partial.resume(while_hashing)
        except BaseException:
            partial.close()
            raise
        return partial

    def partial_bytes(self, digest: str) -> int:
        """Return how far the tensor came that some process may be writing."""
        try:
            return self._shared_partial(digest).stat().st_size
        except OSError:
            return 0

    def is_being_written(self, digest: str) -> bool:
        """Return whether another process is writing this tensor now."""
        try:
            file = try_lock(self._shared_partial(digest), create=False)
        except OSError:
            return False
        if file is not None:
            os.close(file)
        return file is None

    def note_complete(self, partial: PartialTensor) -> FileRange:
        """Return where a tensor lies that was just completed, and remember that its bytes are right."""
        where = FileRange(str(partial.target), 0, partial.num_bytes)
        self._digests.note(where, partial.digest)
        return where

    def release(self) -> None:
        """Hold nothing any more; the files stay. Idempotent."""
        self._lease.close()

    def _shared_partial(self, digest: str) -> Path:
        return self._folder / f"{digest}{_PARTIAL}"

    def _make_room(self, needs: Mapping[str, int], others: Mapping[str, int]) -> None:
        """Remove what was not used for longest. The lock is held."""
        held = {**others, **needs}
        held_bytes = sum(held.values())
        if held_bytes > self._limit_bytes:
            needed_bytes = sum(needs.values())
            raise too_much(self._folder, needed_bytes, held_bytes - needed_bytes, self._limit_bytes)
        files = self._files()
        idle = sorted((file for file in files if file.digest not in held), key=lambda file: file.used_ns)
        here = {file.digest: min(file.num_bytes, held[file.digest]) for file in files if file.digest in held}
        to_come_bytes = held_bytes - sum(here.values())
        over_bytes = max(
            held_bytes + sum(file.num_bytes for file in idle) - self._limit_bytes,
            to_come_bytes - free_bytes(self._folder),
        )
        for file in idle:
            if over_bytes <= 0:
                break
            file.path.unlink(missing_ok=True)
            over_bytes -= file.num_bytes
            logger.info("removed %s from the cache, %d bytes", file.digest[:12], file.num_bytes)
        if to_come_bytes > free_bytes(self._folder):
            raise disk_full(self._folder, to_come_bytes)

    def _files(self) -> list[_File]:
        """Every tensor here, complete or not."""
        files = []
        for path in self._folder.iterdir():
            digest = path.name.partition(".")[0]
            if is_digest(digest):
                with suppress(FileNotFoundError):  # it is completed just now, by another process that holds it
                    stat = path.stat()
                    files.append(_File(path, digest, stat.st_size, max(stat.st_atime_ns, stat.st_mtime_ns)))
        return files
