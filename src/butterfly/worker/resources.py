"""What this machine has to offer: memory that is free now, and how fast it can be read."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import psutil

_PROBE_BYTES = 64 << 20  # well beyond common last-level caches
_PROBE_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class NodeResources:
    host: str
    device: str
    memory_bytes: int  # what weights, KV cache and activations may use together
    memory_bandwidth_bytes_per_s: float


def measure_resources(device: str = "cpu", memory_bytes: int | None = None) -> NodeResources:
    """Measure this machine in about 0.1 s (more while it is busy, mostly to get the memory to read).

    `memory_bytes` overrides the free memory: several workers on one machine must share it, which none of
    them can see for itself.
    """
    return NodeResources(
        host=socket.gethostname(),
        device=device,
        memory_bytes=available_memory_bytes() if memory_bytes is None else memory_bytes,
        memory_bandwidth_bytes_per_s=measure_memory_bandwidth(),
    )


def measure_memory_bandwidth(num_bytes: int = _PROBE_BYTES) -> float:
    """Return bytes per second that one thread reads sequentially: the best of a few rounds."""
    data = numpy.ones(num_bytes, dtype=numpy.uint8)
    best_s = float("inf")
    for _ in range(_PROBE_ROUNDS):
        started_s = time.perf_counter()
        data.max()
        best_s = min(best_s, time.perf_counter() - started_s)
    return num_bytes / best_s


def has_int8_instructions(proc: Path = Path("/proc")) -> bool:
    """Whether this CPU multiplies 8-bit integers without overflow in between, and fast (AVX-512 VNNI or AVX VNNI)."""
    flags = next((line for line in _read(proc / "cpuinfo").splitlines() if line.startswith("flags")), "").split()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def available_memory_bytes(cgroup_root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Return the memory that this process may still take: the machine's, or its control group's if less."""
    available = int(psutil.virtual_memory().available)
    for directory, version in _memory_cgroups(cgroup_root, proc):
        left = _left_in_cgroup(directory, version)
        if left is not None:
            available = min(available, left)
    return available


_LIMIT_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USAGE_FILES = {1: "memory.usage_in_bytes", 2: "memory.current"}
_CACHE_KEYS = {1: "total_inactive_file", 2: "inactive_file"}


def _memory_cgroups(cgroup_root: Path, proc: Path) -> list[tuple[Path, int]]:
    """Return (directory, version) of our memory group and of all above it: each may set a limit."""
    found: list[tuple[Path, int]] = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, version = cgroup_root, 2
        elif "memory" in controllers.split(","):
            mount, version = cgroup_root / "memory", 1
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        found += [(mount.joinpath(*parts[:depth]), version) for depth in range(len(parts) + 1)]
    return found


def _left_in_cgroup(directory: Path, version: int) -> int | None:
    """Return limit - usage, where file cache that the kernel can drop is not usage; None without a limit."""
    limit = _read(directory / _LIMIT_FILES[version]).strip()
    usage = _read(directory / _USAGE_FILES[version]).strip()
    if not limit.isdecimal() or not usage.isdecimal():
        return None  # no such group here, or "max"
    statistics = dict(line.split(" ", 1) for line in _read(directory / "memory.stat").splitlines())
    return max(0, int(limit) - int(usage) + int(statistics.get(_CACHE_KEYS[version], 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
