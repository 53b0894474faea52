"""The embedded cluster: a model opened, local workers started, a coordinator running, all torn down at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil

from butterfly import models
from butterfly.cli.console import loading_progress
from butterfly.cluster import ClusterState, Launcher, LocalLauncher
from butterfly.communication import KeyPair, Transport, ZmqTransport
from butterfly.config import DEFAULT_CONTEXT, ClusterConfig
from butterfly.coordinator import Coordinator, CoordinatorClient, CoordinatorConfig
from butterfly.errors import ConfigError, LaunchError
from butterfly.messages import Invitation, PeerAddress
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.specs import ClusterStatus, ModelFootprint, ModelSpec, TensorEntry, WorkloadSpec

_MEMORY_SHARE = 0.9  # of the free memory; the rest is for the system and this process


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
    with ExitStack() as stack:
        transport = ZmqTransport("coordinator", KeyPair.generate(), encrypt=config.encrypt)
        stack.callback(transport.close)
        inbox = transport.open_inbox()
        launcher = stack.enter_context(LocalLauncher(worker_command(config)))
        names = [f"worker-{index}" for index in range(config.num_workers)]
        metrics = Metrics()
        coordinator = Coordinator(
            PipelineModel(model),
            launcher,
            transport,
            inbox,
            coordinator_config(config, model),
            ClusterState(names, time.monotonic()),
            metrics,
        )
        for name in names:
            start_worker(name, inbox.address, transport, launcher)
        client = CoordinatorClient(coordinator)
        stack.callback(client.stop, "the server stopped")
        client.start()
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


def worker_command(config: ClusterConfig) -> Sequence[str]:
    """How a local worker is started: its share of the cores and of the free memory are explicit."""
    num_threads = config.num_threads or max(1, (os.cpu_count() or 1) // config.num_workers)
    memory = config.memory_bytes or int(psutil.virtual_memory().available * _MEMORY_SHARE / config.num_workers)
    return [
        *(sys.executable, "-m", "butterfly", "worker", "--invitation", "-"),
        *("--device", config.device, "--threads", str(num_threads), "--memory", str(memory)),
        *(() if config.encrypt else ("--no-encrypt",)),
    ]


def coordinator_config(config: ClusterConfig, model: models.Model) -> CoordinatorConfig:
    workload = WorkloadSpec(concurrency=config.max_num_sequences, context=model.spec.max_context)
    return CoordinatorConfig(workload=workload, dtype=config.dtype)


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
