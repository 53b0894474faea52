"""Locks between processes that end with whoever holds them, even by kill -9: flock on an open file."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_AGAIN_S = 0.02


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """Open the file, make it if need be, and lock it; return its descriptor, or None while another holds it.

    Closing the descriptor unlocks. Raises OSError.
    """
    while True:
        file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was moved or removed between opening and locking


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock for a moment. Raises TimeoutError when another holds it for `timeout_s`, and OSError."""
    deadline_s = time.monotonic() + timeout_s
    while (file := try_lock(path)) is None:
        if time.monotonic() >= deadline_s:
            raise TimeoutError(f"another process has locked {path} for {timeout_s:g} s")
        time.sleep(_LOOK_AGAIN_S)
    try:
        yield
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
