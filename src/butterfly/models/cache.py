"""Files that are made once, and kept in the cache folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from butterfly.errors import ConfigError
from butterfly.folders import CACHE_VARIABLE, cache_folder


def cached_file(name: str, write: Callable[[Path], object]) -> Path:
    """Return the cached file `name`; when absent, let `write` fill a temporary path and move it in.

    The move is atomic: another process sees the whole file or none. Raises ConfigError when the
    folder cannot be written.
    """
    target = cache_folder() / name
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            temporary = Path(folder) / target.name
            write(temporary)
            temporary.replace(target)
    except OSError as error:
        raise ConfigError(
            f"cannot write {target}: {error.strerror or error}; set {CACHE_VARIABLE} to a writable folder"
        ) from error
    return target
