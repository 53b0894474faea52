"""CPU shares through control groups, version 1 or 2, whichever is mounted with the cpu controller."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.lab.shapes import LabError

# A group may run at full speed until its quota of a period is used up, so both must be short beside a decode step: with
# 10 ms and the kernel's slices of 5 ms, work of 15 ms after a pause took 22 ms of a share of one half, not 30.
PERIOD_US = 5_000
SLICE_US = 1_000
LEAST_QUOTA_US = 1_000  # the kernel takes no smaller one
_SLICE = Path("/proc/sys/kernel/sched_cfs_bandwidth_slice_us")
REMOVAL_S = 2.0


def find_controller() -> Path | None:
    """Where groups with a CPU quota can be made; None where no cpu controller is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(folder)
        controllers = Path(folder, "cgroup.controllers")
        if kind == "cgroup2" and "cpu" in controllers.read_text().split():
            return Path(folder)
    return None


@contextmanager
def short_slices() -> Iterator[None]:
    """The kernel hands out quotas in slices this short; its own length comes back at the end, but for a SIGKILL."""
    try:
        before = _SLICE.read_text()
        _SLICE.write_text(f"{SLICE_US}\n")
    except OSError:  # it is not ours to change, as in a container
        yield
        return
    try:
        yield
    finally:
        _SLICE.write_text(before)


def make_group(name: str, cpu_share: float) -> Path:
    """A group whose processes together get `cpu_share` cores' worth of time. Raises LabError."""
    root = find_controller()
    if root is None:
        raise LabError("a CPU share needs the cpu controller of cgroup v1 or v2, and neither is mounted")
    period_us = max(PERIOD_US, round(LEAST_QUOTA_US / cpu_share))
    group, quota_us = root / name, round(cpu_share * period_us)
    try:
        group.mkdir()
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_period_us").write_text(str(period_us))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (root / "cgroup.subtree_control").write_text("+cpu")
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
    except OSError as error:
        raise LabError(f"cannot set a CPU share of {cpu_share} in {group}: {error}") from error
    return group


def members(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:  # it has just been removed by someone else
        return []


def remove_group(group: Path) -> None:
    """Remove a group whose processes have been killed; they leave it a moment after."""
    deadline_s = time.monotonic() + REMOVAL_S
    while group.exists():
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)
