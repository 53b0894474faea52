"""What can be wrong with a cache, in words that help."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from butterfly.errors import WorkerError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@contextmanager
def cache_troubles(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Raise WorkerError for what the system says about writing `needed_bytes` more into the folder."""
    try:
        yield
    except TimeoutError as error:
        raise WorkerError(f"cannot use the cache: {error}; or name a folder of its own with --cache-dir") from error
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(folder, needed_bytes) from error
        if error.errno == errno.EFBIG:
            raise WorkerError(
                f"the system allows no file in {folder} as large as a tensor of this model: raise the limit (ulimit -f)"
            ) from error
        raise WorkerError(
            f"cannot write to the cache {folder}: {error.strerror or error}; name another folder with --cache-dir"
        ) from error


def disk_full(folder: Path, needed_bytes: int) -> WorkerError:
    return WorkerError(
        f"the tensors need {as_size(needed_bytes)} more in {folder}, where {as_size(free_bytes(folder))} can be"
        " written: make room on that disk, or name a folder on another one with --cache-dir"
    )


def too_much(folder: Path, needed_bytes: int, others_bytes: int, limit_bytes: int) -> WorkerError:
    others = f", and other workers of this machine hold {as_size(others_bytes)}" if others_bytes else ""
    return WorkerError(
        f"the tensors need {as_size(needed_bytes)} in the cache {folder}{others}; it may hold {as_size(limit_bytes)}:"
        " give it more with --cache-size"
    )


def free_bytes(folder: Path) -> int:
    """Return what may still be written to the folder's disk; 0 when nobody can say."""
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return 0


def as_size(num_bytes: int) -> str:
    for unit_bytes, unit in _UNITS:
        if num_bytes >= unit_bytes:
            return f"{num_bytes / unit_bytes:.1f} {unit}"
    return f"{num_bytes} bytes"


def _existing(folder: Path) -> Path:
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder
