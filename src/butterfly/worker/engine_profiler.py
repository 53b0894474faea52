"""The profiler of a worker with an engine, and all that its measurements depend on."""

from __future__ import annotations

import os

import torch

from butterfly.folders import cache_folder
from butterfly.worker.control_groups import cpu_quota
from butterfly.worker.engine_samples import EngineSampleFactory
from butterfly.worker.engine_stage import Locate
from butterfly.worker.profile_cache import CachedProfiler
from butterfly.worker.profiling import NodeProfiler, Profiler
from butterfly.worker.resources import cpu_name


def engine_profiler(
    device: torch.device, memory_bytes: int, version: str, *, refresh: bool = False, locate: Locate | None = None
) -> Profiler:
    """Measure with the engine, in so much memory at most.

    What the same `version` of Butterfly has measured before is not measured again, unless `refresh` is set.
    `locate`: as `EngineStageFactory` has it.
    """
    quota = cpu_quota()
    is_throttled = quota is not None and quota < torch.get_num_threads()
    profiler = NodeProfiler(EngineSampleFactory(device, locate), memory_bytes, is_throttled=is_throttled)
    return CachedProfiler(profiler, _facts(device, quota, version), cache_folder() / "profiles", refresh=refresh)


def _facts(device: torch.device, quota: float | None, version: str) -> dict[str, str | int | float | None]:
    """What of this node and this process decides about times; not the memory, which decides about none."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cpu_quota": quota,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": str(torch.__version__),
        "butterfly": version,
    }
