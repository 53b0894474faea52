from __future__ import annotations

import platform
import socket
from pathlib import Path

import psutil
import pytest

from butterfly.worker.control_groups import cpu_quota
from butterfly.worker.resources import (
    available_memory_bytes,
    cpu_name,
    has_int8_instructions,
    measure_memory_bandwidth,
    measure_resources,
)

MIB = 1 << 20


def cgroup(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content)


def own_group(tmp_path: Path, lines: str) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(lines)
    return tmp_path / "proc"


def test_this_machine() -> None:
    resources = measure_resources()
    assert resources.host == socket.gethostname()
    assert 0 < resources.memory_bytes <= psutil.virtual_memory().total
    assert resources.memory_bandwidth_bytes_per_s > 1e8


def test_memory_can_be_given() -> None:
    assert measure_resources(memory_bytes=5 * MIB).memory_bytes == 5 * MIB


def test_bandwidth_scales_with_the_bytes_read() -> None:
    assert 1e8 < measure_memory_bandwidth(8 * MIB) < 1e13


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    free = available_memory_bytes(tmp_path / "none", own_group(tmp_path, ""))
    assert 0 < free <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("lines", "directory", "names"),
    [
        ("0::/job\n", "job", ("memory.max", "memory.current", "inactive_file")),
        (
            "3:cpu:/x\n4:memory:/job\n0::/\n",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["v2", "v1"],
)
def test_a_control_group_limits(lines: str, directory: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    limit, usage, cache = names
    files = {limit: f"{10 * MIB}\n", usage: f"{6 * MIB}\n", "memory.stat": f"anon 1\n{cache} {MIB}\n"}
    cgroup(tmp_path / "cgroup" / directory, files)
    assert available_memory_bytes(tmp_path / "cgroup", own_group(tmp_path, lines)) == 5 * MIB


def test_a_group_above_limits_too(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    cgroup(root / "outer", {"memory.max": f"{4 * MIB}\n", "memory.current": f"{MIB}\n"})
    cgroup(root / "outer" / "inner", {"memory.max": "max\n", "memory.current": f"{MIB}\n"})
    assert available_memory_bytes(root, own_group(tmp_path, "0::/outer/inner\n")) == 3 * MIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    cgroup(tmp_path / "cgroup", {"memory.max": "10\n", "memory.current": "11\n"})
    assert available_memory_bytes(tmp_path / "cgroup", own_group(tmp_path, "0::/\n")) == 0


@pytest.mark.parametrize(
    ("lines", "directory", "files", "quota"),
    [
        ("0::/job\n", "job", {"cpu.max": "5000 10000\n"}, 0.5),
        ("0::/job\n", "job", {"cpu.max": "max 100000\n"}, None),
        ("3:cpu,cpuacct:/job\n", "cpu/job", {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"}, 1.5),
        ("3:cpu,cpuacct:/job\n", "cpu/job", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ("", "nothing", {}, None),
    ],
    ids=["v2", "v2 without", "v1", "v1 without", "no groups"],
)
def test_a_cpu_quota_in_cores(
    lines: str, directory: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    cgroup(tmp_path / "cgroup" / directory, files)
    assert cpu_quota(tmp_path / "cgroup", own_group(tmp_path, lines)) == quota


def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    cgroup(root / "outer", {"cpu.max": "20000 100000\n"})
    cgroup(root / "outer" / "inner", {"cpu.max": "90000 100000\n"})
    assert cpu_quota(root, own_group(tmp_path, "0::/outer/inner\n")) == 0.2


def test_what_the_cpu_says_of_itself(tmp_path: Path) -> None:
    lines = "processor\t: 0\nmodel name\t: A CPU @ 3: fast\nflags\t\t: fpu avx_vnni sse\n"
    (tmp_path / "cpuinfo").write_text(f"{lines}\n{lines.replace('A CPU', 'Another')}")
    assert cpu_name(tmp_path) == "A CPU @ 3: fast"
    assert has_int8_instructions(tmp_path)
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp\n")
    assert cpu_name(tmp_path) == platform.machine()
    assert not has_int8_instructions(tmp_path)
