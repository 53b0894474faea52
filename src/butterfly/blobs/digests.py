"""Digests of ranges of files, computed once and remembered, in this process and on disk.

The disk's memory is a file of JSON lines, appended to in single writes, so that processes share it without a lock: a
line that is damaged or missing costs only computing that digest again. What is remembered counts while path, size and
time of change of the file are the same; whoever can forge those can write the file of digests too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from butterfly.blobs.file_range import FileRange
from butterfly.errors import ModelFormatError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Hasher(Protocol):
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def new_hasher() -> Hasher:
    """Return one that makes digests as `calls.DIGEST` says."""
    return hashlib.blake2b(digest_size=32)


def is_digest(text: str) -> bool:
    """Return whether it looks like a digest: it may become the name of a file."""
    return _DIGEST.fullmatch(text) is not None


class _State(NamedTuple):
    """A range of a file as it was at one time."""

    path: str
    size_bytes: int
    changed_ns: int
    offset: int
    num_bytes: int


_Row = tuple[str, int, int, int, int, str]  # a state, and its digest
_row_decoder: msgspec.json.Decoder[_Row] = msgspec.json.Decoder(_Row)


class FileDigests:
    """Safe to use from any thread. Without a `memory` file nothing outlives the process."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._known: dict[_State, str] = {} if memory is None else _read(memory)

    def remembered(self, where: FileRange) -> str | None:
        """Return the digest without reading the file; None when it is not known, or there is no such range."""
        try:
            state = _state(where)
        except OSError:
            return None
        return self._known.get(state)

    def digest(self, where: FileRange, while_hashing: Callable[[], None] | None = None) -> str:
        """Return the digest of the range; `while_hashing` is called after every MiB, and may raise to end it.

        Raises ModelFormatError naming the file when it cannot be read, or ends before the range.
        """
        try:
            state = _state(where)
            known = self._known.get(state)
            if known is not None:
                return known
            if where.offset + where.num_bytes > state.size_bytes:
                raise ModelFormatError(f"{where.path} ends before byte {where.offset + where.num_bytes}")
            digest = _hash(where, while_hashing)
            if _state(where) == state:  # else it was changed meanwhile: this is the digest of neither
                self._remember(state, digest)
        except OSError as error:
            raise ModelFormatError(f"cannot read {where.path}: {error.strerror or error}") from error
        return digest

    def note(self, where: FileRange, digest: str) -> None:
        """Remember the digest of a range that was hashed while it was written."""
        try:
            self._remember(_state(where), digest)
        except OSError as error:
            logger.debug("nothing to remember of %s: %s", where.path, error)

    def _remember(self, state: _State, digest: str) -> None:
        with self._lock:
            if self._known.get(state) == digest:
                return
            self._known[state] = digest
            if self._memory is None:
                return
            try:
                _append(self._memory, msgspec.json.encode((*state, digest)) + b"\n")
            except (OSError, UnicodeEncodeError) as error:  # a path may hold bytes that are no text
                logger.warning("cannot keep digests in %s: %s", self._memory, error)
                self._memory = None


def _state(where: FileRange) -> _State:
    stat = os.stat(where.path)
    return _State(where.path, stat.st_size, stat.st_mtime_ns, where.offset, where.num_bytes)


def _hash(where: FileRange, while_hashing: Callable[[], None] | None) -> str:
    hasher = new_hasher()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, where.num_bytes)))
    with open(where.path, "rb", buffering=0) as file:
        file.seek(where.offset)
        remaining_bytes = where.num_bytes
        while remaining_bytes:
            num_read = file.readinto(buffer[:remaining_bytes])
            if not num_read:
                raise ModelFormatError(f"{where.path} became shorter while it was read")
            hasher.update(buffer[:num_read])
            remaining_bytes -= num_read
            if while_hashing is not None:
                while_hashing()
    return hasher.hexdigest()


def _read(memory: Path) -> dict[_State, str]:
    known: dict[_State, str] = {}
    num_damaged = 0
    try:
        lines = memory.read_bytes().splitlines()
    except FileNotFoundError:
        return known
    except OSError as error:
        logger.warning("cannot use the digests in %s: %s", memory, error)
        return known
    for line in lines:
        try:
            row = _row_decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            num_damaged += 1
        else:
            known[_State(*row[:5])] = row[5]
    if num_damaged:
        logger.warning("ignored %d damaged lines of %s", num_damaged, memory)
    return known


def _append(memory: Path, line: bytes) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(memory, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)
