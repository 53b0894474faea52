"""What the workers of this machine need of a shared cache: a file for each worker, locked while it lives.

All of it is read and written while the cache's own lock is held.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import msgspec

from butterfly.worker.tensors.locking import try_lock

_decoder: msgspec.json.Decoder[dict[str, int]] = msgspec.json.Decoder(dict[str, int])


class Lease:
    """What one worker needs: sizes in bytes by digest."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{uuid4().hex}.json"
        self._file: int | None = None

    def clear(self) -> None:
        """Need nothing, for now. Raises OSError."""
        os.ftruncate(self._open(), 0)

    def write(self, needs: Mapping[str, int]) -> None:
        """Need these, after a `clear`. Raises OSError."""
        os.pwrite(self._open(), msgspec.json.encode(dict(needs)), 0)

    def close(self) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = try_lock(self._path)
            assert self._file is not None, "nobody else knows this name"
        return self._file


def read_leases(folder: Path) -> dict[str, int]:
    """Return what all living workers need, and remove what dead ones left. Raises OSError."""
    needs: dict[str, int] = {}
    for path in folder.glob("*.json"):
        try:
            file = try_lock(path, create=False)
            if file is not None:  # its worker has died
                path.unlink(missing_ok=True)
                os.close(file)
                continue
            needs.update(_decoder.decode(path.read_bytes()))
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # it ends just now, or needs nothing
    return needs
