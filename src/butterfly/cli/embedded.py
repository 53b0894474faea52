"""The embedded cluster: a model opened, local workers started, a coordinator running, all torn down at the end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from butterfly import models
from butterfly.cli.console import loading_progress
from butterfly.cluster import ClusterState, Deadlines, Launcher, LocalLauncher
from butterfly.communication import KeyPair, Transport, ZmqTransport
from butterfly.config import DEFAULT_CONTEXT, ClusterConfig
from butterfly.coordinator import Coordinator, CoordinatorClient, CoordinatorConfig
from butterfly.errors import ConfigError, LaunchError
from butterfly.messages import Invitation, PeerAddress
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.partitioning import plan as make_plan
from butterfly.specs import (
    ClusterSpec,
    ClusterStatus,
    ModelFootprint,
    ModelSpec,
    NodeSpec,
    TensorEntry,
    WorkloadSpec,
)
from butterfly.worker.resources import available_memory_bytes

_MEMORY_SHARE = 0.9  # of the free memory; the rest is for the system and this process
_PROCESS_BYTES = 300 << 20  # interpreter and PyTorch of one worker, as measured
_ANY_BANDWIDTH = 1e10  # bytes per second


@dataclass(frozen=True)
class EmbeddedCluster:
    """What a command works with while the cluster runs."""

    model: models.Model
    client: CoordinatorClient
    metrics: Metrics
    statistics: StepStatistics

    def wait_until_ready(self) -> ClusterStatus:
        """Show progress until every stage is loaded. Raises LaunchError with the reason when that fails."""
        with loading_progress() as progress:
            while True:
                status = self.client.status()
                progress.show(status)
                if status.phase == "ready":
                    return status
                if status.phase in ("failed", "stopping"):
                    raise LaunchError(status.detail or "the cluster did not start")
                if not self.client.is_alive:
                    raise LaunchError("the coordinator stopped; run with --log-level debug to see why")
                time.sleep(0.05)


@contextmanager
def embedded_cluster(config: ClusterConfig) -> Iterator[EmbeddedCluster]:
    """Open the model and start workers and coordinator; leave no process behind, however the block ends.

    The cluster loads in the background: `wait_until_ready`. Raises ModelError, ConfigError, LaunchError.
    """
    model = open_model(config)
    memory_bytes = config.memory_bytes or free_memory_share(config.num_workers)
    names = [f"worker-{index}" for index in range(config.num_workers)]
    settings = coordinator_config(config, model)
    check_it_fits(model, names, memory_bytes, settings.workload)
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        transport = ZmqTransport("coordinator", KeyPair.generate(), encrypt=config.encrypt)
        stack.callback(transport.close)
        inbox = transport.open_inbox()
        launcher = stack.enter_context(LocalLauncher(worker_command(config, memory_bytes)))
        metrics = Metrics()
        coordinator = Coordinator(
            PipelineModel(model),
            launcher,
            transport,
            inbox,
            settings,
            ClusterState(names, time.monotonic(), Deadlines(heartbeat_timeout_s=config.heartbeat_timeout_s)),
            metrics,
        )
        for name in names:
            start_worker(name, inbox.address, transport, launcher)
        client = CoordinatorClient(coordinator)
        stack.callback(client.stop, "the server stopped")
        client.start()
        # The ending is short and every part of it has a deadline: a second Ctrl-C would only leave it half done.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        yield EmbeddedCluster(model, client, metrics, coordinator.statistics)


def start_worker(name: str, coordinator: PeerAddress, transport: Transport, launcher: Launcher) -> None:
    """Start a worker with keys made for this run: it proves its own, and knows ours."""
    keys = KeyPair.generate()
    transport.admit(name, keys.public_key)
    launcher.start(
        Invitation(name=name, coordinator=coordinator, public_key=keys.public_key, secret_key=keys.secret_key)
    )


def open_model(config: ClusterConfig) -> models.Model:
    """Open the model with the context that was asked for, or a bounded default."""
    with loading_progress() as progress:
        model = models.open_model(config.model, progress=progress.download, dtype=config.dtype)
    context = config.context or min(model.spec.max_context, DEFAULT_CONTEXT)
    if config.num_workers > model.spec.num_layers:
        raise ConfigError(
            f"{config.num_workers} workers were asked for, but the model has only {model.spec.num_layers} layers: "
            f"use --workers {model.spec.num_layers} or fewer"
        )
    return models.limit_context(model, context)


def free_memory_share(num_workers: int) -> int:
    """What one of the local workers may use when nothing was said."""
    available = available_memory_bytes() * _MEMORY_SHARE - num_workers * _PROCESS_BYTES
    return max(0, int(available / num_workers))


def check_it_fits(model: models.Model, names: Sequence[str], memory_bytes: int, workload: WorkloadSpec) -> None:
    """Ask the planner before any process is started. Raises InfeasiblePlanError.

    What the workers measure later only changes the predicted times.
    """
    nodes = tuple(
        NodeSpec(name=name, memory_bytes=memory_bytes, memory_bandwidth_bytes_per_s=_ANY_BANDWIDTH) for name in names
    )
    make_plan(model.footprint, ClusterSpec(nodes=nodes), workload)


def worker_command(config: ClusterConfig, memory_bytes: int) -> Sequence[str]:
    """How a local worker is started: its share of the cores and of the memory are explicit."""
    num_threads = config.num_threads or max(1, len(os.sched_getaffinity(0)) // config.num_workers)
    return [
        *(sys.executable, "-m", "butterfly", "worker", "--invitation", "-"),
        *("--device", config.device, "--threads", str(num_threads), "--memory", str(memory_bytes)),
        *("--log-level", logging.getLevelName(logging.getLogger().level).lower()),
        *(() if config.encrypt else ("--no-encrypt",)),
    ]


def coordinator_config(config: ClusterConfig, model: models.Model) -> CoordinatorConfig:
    workload = WorkloadSpec(concurrency=config.max_num_sequences, context=model.spec.max_context)
    return CoordinatorConfig(
        workload=workload, dtype=config.dtype, num_slots=config.num_slots, step_timeout_s=config.step_timeout_s
    )


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
