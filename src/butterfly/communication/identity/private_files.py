"""Small files that only their owner may read: written whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from filelock import FileLock, Timeout

from butterfly.errors import ConfigError

_Content = TypeVar("_Content", bound=msgspec.Struct)

_LOCK_TIMEOUT_S = 5.0  # whoever holds one writes a few kilobytes


def make_private_folder(folder: Path) -> None:
    """Make the folder, and what is missing above it, for its owner alone. Raises ConfigError.

    A folder that is there already must be such a one: who may write there could exchange the keys.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}; BUTTERFLY_STATE may name one") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o022:
        raise ConfigError(f"others may change what is in {folder}: run `chmod 700 {folder}`")


def write_private(path: Path, content: msgspec.Struct) -> None:
    """Write `content` as JSON. Whoever reads the file sees all of it or none. Raises ConfigError.

    To be called under the lock that goes with the file: the place of the new content has a name of its own, so that
    what a killed process leaves there is written over.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # it may have been there already
            file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):  # half a file helps nobody, and on a full disk it is in the way
            fresh.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path, kind: type[_Content]) -> _Content | None:
    """Return the content of the file, None when there is no such file.

    Raises ConfigError that names the file, and never quotes it, when it is damaged or others may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"others may read {path}: run `chmod 600 {path}`")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # `from None`: the decoder's message and the context could quote a secret
        raise ConfigError(
            f"{path} is damaged, or was written by another version of Butterfly: bring back a copy, or remove it to "
            "begin anew (join lines and worker keys that it holds are then worth nothing)"
        ) from None


@contextmanager
def locked(path: Path, timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file `path`, which is made and stays. Raises ConfigError when another process keeps it."""
    with _held(path, timeout_s) as is_ours:
        if not is_ours:
            raise ConfigError(f"another process has kept {path} locked for {timeout_s:g} s")
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, as `locked` does, or yield False when it is held already."""
    with _held(path, 0.0) as is_ours:
        yield is_ours


@contextmanager
def _held(path: Path, timeout_s: float) -> Iterator[bool]:
    make_private_folder(path.parent)
    lock = FileLock(path, timeout=timeout_s, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise ConfigError(f"cannot lock {path}: {error.strerror}") from error
    try:
        yield True
    finally:
        lock.release()
