"""Who starts the workers, this machine or Ray, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping

from butterfly.cluster import LocalLauncher, RayLauncher
from butterfly.config import ClusterConfig
from butterfly.embedded.building import memory_options, ray_arguments, worker_command

_PREFIX = "worker-"


def worker_name(number: int) -> str:
    return f"{_PREFIX}{number}"


def worker_names(num_workers: int) -> list[str]:
    return [worker_name(number) for number in range(num_workers)]


def is_own_name(config: ClusterConfig, name: str) -> bool:
    """Whether a worker that we start is called so, or may come to be: nobody else may be."""
    number = name.removeprefix(_PREFIX)
    if number == name or not number.isdecimal():
        return False
    return config.fills_places or int(number) < config.num_workers


def names_to_start(config: ClusterConfig, launcher: LocalLauncher | RayLauncher) -> list[str]:
    """The workers that the cluster begins with: as many as were asked for, or one for each place that there is now."""
    if config.fills_places and isinstance(launcher, RayLauncher):
        return worker_names(launcher.num_free_places())
    return worker_names(config.num_workers)


def open_launcher(config: ClusterConfig, memory_bytes: Mapping[str, int]) -> LocalLauncher | RayLauncher:
    """What starts the workers, to be left as a context manager. `memory_bytes`: what each may use, as far as is known.

    Raises LaunchError when Ray does not answer.
    """
    if config.ray_address:
        options = memory_options(memory_bytes) if len(config.memory_bytes) > 1 else {}
        return RayLauncher(config.ray_address, ray_arguments(config), options)
    prefixes = dict(zip(worker_names(config.num_workers), config.worker_prefixes, strict=False))
    return LocalLauncher(worker_command(config), prefixes, memory_options(memory_bytes))
