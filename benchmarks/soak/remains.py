"""What is left when a soak has stopped everything: processes, sockets, files."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

MARK_VARIABLE = "BUTTERFLY_SOAK"  # in the environment of all that a soak starts, and of what that starts
SHARED_MEMORY = Path("/dev/shm")
_TEMPORARY = (".new", ".tmp", ".part")


class Remains(NamedTuple):
    leftovers: list[str]  # that should not be there
    kept: list[str]  # of killed workers, in the cache: the next one resumes or removes them


def find_remains(mark: str, folder: Path, ports: Sequence[int], shared_before: set[str]) -> Remains:
    """Look when everything was stopped. `shared_before`: the names in shared memory from before the soak."""
    leftovers = [
        *(f"process {name}" for name in marked_processes(mark)),
        *(f"port {port} still answers" for port in ports if answers(port)),
        *(f"socket {path}" for path in unix_sockets(folder)),
        *(f"shared memory {name}" for name in sorted(names_in(SHARED_MEMORY) - shared_before)),
        *(f"temporary file {path.relative_to(folder)}" for path in temporary_files(folder)),
    ]
    tensors = folder / "guests-cache" / "tensors"
    kept = [str(path.relative_to(tensors)) for path in (*tensors.glob("*.part"), *tensors.glob("in-use/*.json"))]
    return Remains(leftovers, sorted(kept))


def marked_processes(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is not ours to look at
            if process.environ().get(MARK_VARIABLE) == mark:
                found.append(f"{process.pid} {process.name()}")
    return found


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def unix_sockets(folder: Path) -> list[str]:
    """Sockets with a path in the folder."""
    return [word for word in Path("/proc/net/unix").read_text().split() if word.startswith(f"{folder}/")]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def temporary_files(folder: Path) -> list[Path]:
    """All in `tmp`, and what looks like a file on its way anywhere else but among the cache's tensors."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] == "tmp":
            found += [path] if len(parts) > 1 else []
        elif "tensors" not in parts and (path.name.startswith(".") or path.suffix in _TEMPORARY):
            found.append(path)
    return found
