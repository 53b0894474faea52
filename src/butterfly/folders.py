"""The folder in which Butterfly keeps what must outlive a process: keys, join tokens, who was let in."""

from __future__ import annotations

import os
from pathlib import Path

STATE_VARIABLE = "BUTTERFLY_STATE"


def state_folder() -> Path:
    """Return $BUTTERFLY_STATE, else `butterfly` in the XDG state folder. It may not exist yet."""
    if named := os.environ.get(STATE_VARIABLE):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "butterfly"
