"""Key pairs that outlive a process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from butterfly.communication.identity.names import numbered
from butterfly.communication.identity.private_files import locked_if_free, read_private, write_private
from butterfly.communication.keys import KeyPair
from butterfly.errors import ConfigError
from butterfly.specs import Spec

_MAX_WORKERS_OF_ONE_NAME = 64  # on one machine and for one coordinator


class _StoredKeys(Spec, frozen=True):
    public_key: str
    secret_key: str


def kept_keys(path: Path) -> KeyPair:
    """Return the pair in the file, made when there is none. To be called under a lock. Raises ConfigError."""
    stored = read_private(path, _StoredKeys)
    if stored is None:
        keys = KeyPair.generate()
        write_private(path, _StoredKeys(public_key=keys.public_key, secret_key=keys.secret_key))
        return keys
    keys = KeyPair(stored.public_key, stored.secret_key)
    try:
        keys.check()
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged ({error}): bring back a copy, or remove it to begin anew") from error
    return keys


@contextmanager
def worker_keys(state: Path, coordinator_key: str, name: str) -> Iterator[tuple[str, KeyPair]]:
    """Yield the name to ask for and the pair that this machine keeps for it and this coordinator.

    They are this process's alone for as long as the block lasts: a second worker of the same name on this machine
    gets `name-2` and a pair of its own, always the same ones. Raises ConfigError.
    """
    folder = state / "worker" / hashlib.sha256(coordinator_key.encode()).hexdigest()[:16]
    with ExitStack() as held:
        for number in range(1, _MAX_WORKERS_OF_ONE_NAME + 1):
            slot = numbered(name, number)
            if held.enter_context(locked_if_free(folder / f"{slot}.lock")):
                yield slot, kept_keys(folder / f"{slot}.json")
                return
        raise ConfigError(f"{_MAX_WORKERS_OF_ONE_NAME} workers called {name} run here already: give another --name")
