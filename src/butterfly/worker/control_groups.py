"""What this process's control groups allow it: each group, and all above it, may set a limit."""

from __future__ import annotations

from pathlib import Path

CGROUP_ROOT, PROC = Path("/sys/fs/cgroup"), Path("/proc")

_MEMORY_LIMIT_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}
_MEMORY_USAGE_FILES = {1: "memory.usage_in_bytes", 2: "memory.current"}
_MEMORY_CACHE_KEYS = {1: "total_inactive_file", 2: "inactive_file"}


def memory_left_bytes(cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> int | None:
    """Return how much more memory our groups allow; None where they set no limit."""
    left = [_memory_left(*group) for group in _groups("memory", cgroup_root, proc)]
    return min((num_bytes for num_bytes in left if num_bytes is not None), default=None)


def cpu_quota(cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> float | None:
    """Return how many cores' worth of time our groups allow; None where they set no limit."""
    quotas = [_cpu_quota(*group) for group in _groups("cpu", cgroup_root, proc)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(controller: str, cgroup_root: Path, proc: Path) -> list[tuple[Path, int]]:
    """Return (directory, version) of our group of a controller and of all above it."""
    found: list[tuple[Path, int]] = []
    for line in read_text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, version = cgroup_root, 2
        elif controller in controllers.split(","):
            mount, version = cgroup_root / controller, 1
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        found += [(mount.joinpath(*parts[:depth]), version) for depth in range(len(parts) + 1)]
    return found


def _memory_left(directory: Path, version: int) -> int | None:
    """Return limit - usage, where file cache that the kernel can drop is not usage; None without a limit."""
    limit = read_text(directory / _MEMORY_LIMIT_FILES[version]).strip()
    usage = read_text(directory / _MEMORY_USAGE_FILES[version]).strip()
    if not limit.isdecimal() or not usage.isdecimal():
        return None  # no such group here, or "max"
    statistics = dict(line.split(" ", 1) for line in read_text(directory / "memory.stat").splitlines())
    return max(0, int(limit) - int(usage) + int(statistics.get(_MEMORY_CACHE_KEYS[version], 0)))


def _cpu_quota(directory: Path, version: int) -> float | None:
    if version == 2:
        words = read_text(directory / "cpu.max").split()
    else:
        words = [read_text(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None  # no such group here, "max" or -1
    return int(words[0]) / int(words[1])


def read_text(path: Path) -> str:
    """What is in the file; nothing where there is none, or it is closed to us."""
    try:
        return path.read_text()
    except OSError:
        return ""
