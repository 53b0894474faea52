"""What a run leaves in the system, found by its name and removed: namespaces, the processes in them, control groups.

A run is named `bflab-PID-TOKEN` after the process that made it, and its namespaces and groups `bflab-PID-TOKEN-NODE`.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.lab.cgroups import find_controller, members, remove_group

NAMESPACES = Path("/run/netns")
KILLING_S = 5.0
_OURS = re.compile(r"(bflab-(\d+)-[0-9a-f]+)-\d+")


def new_run() -> str:
    return f"bflab-{os.getpid()}-{secrets.token_hex(3)}"


def namespaces_of(run: str) -> list[Path]:
    return sorted(NAMESPACES.glob(f"{run}-*"))


def groups_of(run: str) -> list[Path]:
    root = find_controller()
    return [] if root is None else sorted(root.glob(f"{run}-*"))


def processes_of(run: str) -> list[int]:
    """Processes in the run's namespaces or groups, whoever started them."""
    inodes = set()
    for namespace in namespaces_of(run):
        try:
            inodes.add(namespace.stat().st_ino)
        except FileNotFoundError:
            continue
    found = {pid for group in groups_of(run) for pid in members(group)}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino in inodes:
                found.add(int(pid))
        except OSError:  # it has ended
            continue
    return sorted(found - {os.getpid()})


def remove_run(run: str) -> None:
    """Kill the run's processes and remove its namespaces and groups. Doing it twice, or from two places, is fine."""
    deadline_s = time.monotonic() + KILLING_S
    while (left := processes_of(run)) and time.monotonic() < deadline_s:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)
    for namespace in namespaces_of(run):
        subprocess.run(["ip", "netns", "delete", namespace.name], check=False, capture_output=True)
    for group in groups_of(run):
        remove_group(group)


def remove_dead_runs() -> None:
    """Remove what runs left whose process is no more: those that were killed together with their switch."""
    root = find_controller()
    names = [path.name for folder in (NAMESPACES, root) if folder is not None for path in folder.glob("bflab-*")]
    runs = {match[1]: int(match[2]) for match in map(_OURS.fullmatch, names) if match}
    for run, pid in runs.items():
        if not Path(f"/proc/{pid}").exists():
            remove_run(run)
