"""What this machine has to offer: memory that is free now, and how fast it can be read."""

from __future__ import annotations

import platform
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import psutil

from butterfly.worker.control_groups import CGROUP_ROOT, PROC, memory_left_bytes, read_text

_PROBE_BYTES = 64 << 20  # well beyond common last-level caches
_PROBE_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class NodeResources:
    host: str
    device: str
    memory_bytes: int  # what weights, KV cache and activations may use together
    memory_bandwidth_bytes_per_s: float
    flops_per_s: float = 0.0  # of matrix products; 0: not measured, see engine.matrix_rates


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


def has_int8_instructions(proc: Path = PROC) -> bool:
    """Whether this CPU multiplies 8-bit integers without overflow in between, and fast (AVX-512 VNNI or AVX VNNI)."""
    flags = _cpu_info("flags", proc).split()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def cpu_name(proc: Path = PROC) -> str:
    """What the CPU calls itself, or the kind of machine where it does not."""
    return _cpu_info("model name", proc) or platform.machine()


def available_memory_bytes(cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> int:
    """Return the memory that this process may still take: the machine's, or its control group's if less."""
    available = int(psutil.virtual_memory().available)
    left = memory_left_bytes(cgroup_root, proc)
    return available if left is None else min(available, left)


def _cpu_info(key: str, proc: Path) -> str:
    """What the system says of the first core under this key."""
    for line in read_text(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
