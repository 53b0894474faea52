"""Who may send to us: the table from public keys to names that a transport's border consults."""

from __future__ import annotations

import threading


class Admissions:
    """Keys that are let in, each under one name. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}

    def admit(self, name: str, public_key: str) -> None:
        """Let the key in under `name`; a key that had this name before is out."""
        with self._lock:
            self._names = {key: known for key, known in self._names.items() if known != name}
            self._names[public_key] = name

    def expel(self, name: str) -> None:
        with self._lock:
            self._names = {key: known for key, known in self._names.items() if known != name}

    def name_of(self, public_key: str) -> str | None:
        """Return the name of an admitted key, or None."""
        return self._names.get(public_key)  # one read of a dict that is replaced or grown, never shrunk
