"""From the options of a run to the parts of a cluster: the model, what its workers may use, their command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod

import msgspec

from butterfly import models
from butterfly.config import DEFAULT_CONTEXT, ClusterConfig
from butterfly.coordinator import CoordinatorConfig, Patience
from butterfly.embedded.watching import Watching
from butterfly.errors import ConfigError, InfeasiblePlanError
from butterfly.partitioning import plan as make_plan
from butterfly.specs import (
    ClusterSpec,
    ModelFootprint,
    ModelSpec,
    NodeSpec,
    PlanConstraints,
    PrefixReuse,
    TensorEntry,
    WeightFormat,
    WorkloadSpec,
)
from butterfly.worker.resources import available_memory_bytes, has_int8_instructions

_MEMORY_SHARE = 0.9  # of the free memory; the rest is for the system and this process
_PROCESS_BYTES = 300 << 20  # interpreter and PyTorch of one worker, as measured
_LARGE_MATRIX = 4 << 20  # weights of one, from which on int8 costs one row about what int4 does
_ANY_BANDWIDTH = 1e10  # bytes per second
_LOG_LEVELS = ((logging.DEBUG, "debug"), (logging.INFO, "info"), (logging.WARNING, "warning"))


def open_model(config: ClusterConfig, watching: Watching) -> models.Model:
    """Open the model with the context that was asked for, or a bounded default. Raises ModelError, ConfigError."""
    with watching() as watcher:
        model = models.open_model(config.model, progress=watcher.download, dtype=config.dtype)
    if config.worker_prefixes and config.ray_address:
        raise ConfigError("--start-with is for workers that this machine starts; with --ray, Ray starts them")
    if config.worker_prefixes and len(config.worker_prefixes) != config.num_workers:
        raise ConfigError(
            f"{len(config.worker_prefixes)} prefixes (--start-with) were given for {config.num_workers} workers: "
            "give one for each worker, in order, or none"
        )
    if len(config.memory_bytes) not in (0, 1, config.num_workers):
        raise ConfigError(
            f"{len(config.memory_bytes)} sizes (--memory) were given for {config.num_workers} workers: give one for "
            "all, or one for each in order"
        )
    context = config.context or min(model.spec.max_context, DEFAULT_CONTEXT)
    if config.num_workers > model.spec.num_layers:
        raise ConfigError(
            f"{config.num_workers} workers were asked for, but the model has only {model.spec.num_layers} layers: "
            f"ask for {model.spec.num_layers} workers or fewer"
        )
    return models.limit_context(model, context)


def free_memory_share(num_workers: int) -> int:
    """What one of the local workers may use when nothing was said, in bytes."""
    if not num_workers:
        return 0
    available = available_memory_bytes() * _MEMORY_SHARE - num_workers * _PROCESS_BYTES
    return max(0, int(available / num_workers))


def worker_memory_bytes(config: ClusterConfig) -> tuple[int, ...]:
    """What each worker may use, in order; none where it is another machine's memory and nobody has said."""
    if config.ray_address and not config.memory_bytes:
        return ()
    if len(config.memory_bytes) == config.num_workers:
        return config.memory_bytes
    one = config.memory_bytes[0] if config.memory_bytes else free_memory_share(config.num_workers)
    return (one,) * config.num_workers


def check_it_fits(
    model: models.Model,
    memory_bytes: Mapping[str, int],
    workload: WorkloadSpec,
    constraints: PlanConstraints,
) -> None:
    """Ask the planner before any process is started. Raises InfeasiblePlanError, PlanError.

    What the workers measure later changes times, and with them the plan, but not whether there is one.
    """
    nodes = tuple(
        NodeSpec(name=name, memory_bytes=size, memory_bandwidth_bytes_per_s=_ANY_BANDWIDTH)
        for name, size in memory_bytes.items()
    )
    some_plan = msgspec.structs.replace(workload, objective="latency")  # the one that is found fastest
    make_plan(model.footprint, ClusterSpec(nodes=nodes), some_plan, constraints)


def choose_weights(config: ClusterConfig, model: models.Model, memory_bytes: Mapping[str, int]) -> WeightFormat:
    """What quantised matrices are held as when nobody said so: mixed where that is faster, and where there is room.

    It is one answer for the whole cluster: another one gives other logits. Small matrices stay int4, since an int8
    product costs more per call. Raises InfeasiblePlanError when not even int4 fits.
    """
    workload = coordinator_config(config, model, "int4").workload

    def check(weights: WeightFormat) -> WeightFormat:
        held = models.with_weights(model, config.dtype, weights)
        if memory_bytes and not config.takes_newcomers:  # else it may fit on what others bring
            check_it_fits(held, memory_bytes, workload, config.constraints)
        return weights

    if config.weights != "auto":
        return check(config.weights)
    gate = model.tensors.get("layers.0.gate")
    is_large = gate is not None and prod(gate.shape) >= _LARGE_MATRIX
    if config.dtype == "bfloat16" and is_large and has_int8_instructions():
        with suppress(InfeasiblePlanError):
            return check("mixed")
    return check("int4")


def memory_options(memory_bytes: Mapping[str, int]) -> dict[str, Sequence[str]]:
    """The words that tell each worker what it may use."""
    return {name: ("--memory", str(size)) for name, size in memory_bytes.items()}


def worker_command(config: ClusterConfig) -> Sequence[str]:
    """How any local worker is started: its share of the cores is explicit, as its memory will be."""
    num_threads = config.num_threads or max(1, len(os.sched_getaffinity(0)) // max(1, config.num_workers))
    return [sys.executable, *_worker_arguments(config), "--threads", str(num_threads)]


def ray_arguments(config: ClusterConfig) -> Sequence[str]:
    """What the Python of a Ray node runs: cores and memory are that node's, as far as nobody has said how many."""
    return [
        *_worker_arguments(config),
        *(("--threads", str(config.num_threads)) if config.num_threads else ()),
        *(("--memory", str(config.memory_bytes[0])) if len(config.memory_bytes) == 1 else ()),
    ]


def _worker_arguments(config: ClusterConfig) -> Sequence[str]:
    return [
        *("-m", "butterfly", "worker", "--invitation", "-", "--device", config.device),
        *("--log-level", log_level_name(logging.getLogger().level)),
        *(() if config.encrypt else ("--no-encrypt",)),
    ]


def log_level_name(level: int) -> str:
    """The log level of a worker nearest to one of Python's: a program that uses us may have any."""
    return next((name for known, name in _LOG_LEVELS if level <= known), "error")


def coordinator_config(config: ClusterConfig, model: models.Model, weights: WeightFormat) -> CoordinatorConfig:
    workload = WorkloadSpec(
        concurrency=config.max_num_sequences,
        context=model.spec.max_context,
        mean_context=config.mean_context,
        kv_tokens=config.kv_tokens,
        objective=config.objective,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )
    return CoordinatorConfig(
        workload=workload,
        constraints=config.constraints,
        measure=config.measure,
        dtype=config.dtype,
        weights=weights,
        num_slots=config.num_slots,
        max_num_batched_tokens=config.max_num_batched_tokens,
        prefix_reuse=_prefix_reuse(config, weights),
        target_ttft_s=config.target_ttft_s,
        patience=Patience(most_s=config.step_timeout_s),
    )


def _prefix_reuse(config: ClusterConfig, weights: WeightFormat) -> PrefixReuse:
    """With mixed weights, a generated token that returns in a prompt is computed anew: as a token of that prompt."""
    if config.prefix_reuse != "auto":
        return config.prefix_reuse
    return "prompt" if weights == "mixed" else "all"


class PipelineModel:
    """The model as the coordinator wants to see it."""

    def __init__(self, model: models.Model) -> None:
        self._model = model

    @property
    def name(self) -> str:
        return self._model.display_name

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    @property
    def footprint(self) -> ModelFootprint:
        return self._model.footprint

    def stage_tensors(self, start: int, end: int, *, embedding: bool, head: bool) -> Sequence[TensorEntry]:
        return models.stage_tensors(self._model, start, end, embedding=embedding, head=head)

    def profile_tensors(self) -> tuple[Sequence[int], Sequence[TensorEntry]]:
        return models.profile_tensors(self._model)
