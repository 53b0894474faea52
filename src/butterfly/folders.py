"""The folders in which Butterfly keeps what must outlive a process, and what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path

STATE_VARIABLE = "BUTTERFLY_STATE"
CACHE_VARIABLE = "BUTTERFLY_CACHE"


def state_folder() -> Path:
    """Return $BUTTERFLY_STATE, else `butterfly` in the XDG state folder: keys, join tokens, who was let in.

    It may not exist yet.
    """
    return _folder(STATE_VARIABLE, "XDG_STATE_HOME", Path(".local", "state"))


def cache_folder() -> Path:
    """Return $BUTTERFLY_CACHE, else `butterfly` in the XDG cache folder: tensors, profiles. It may not exist yet."""
    return _folder(CACHE_VARIABLE, "XDG_CACHE_HOME", Path(".cache"))


def _folder(variable: str, xdg_variable: str, below_home: Path) -> Path:
    if named := os.environ.get(variable):
        return Path(named).expanduser().absolute()
    base = os.environ.get(xdg_variable)
    return (Path(base) if base else Path.home() / below_home) / "butterfly"
