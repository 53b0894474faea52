"""The embedded cluster: started, handed out, torn down."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType

import msgspec

from butterfly import models
from butterfly.cluster import ClusterState, Deadlines, LocalLauncher
from butterfly.communication import KeyPair, ZmqTransport
from butterfly.communication.identity import CoordinatorState
from butterfly.config import ClusterConfig
from butterfly.coordinator import Coordinator, CoordinatorClient
from butterfly.coordinator.starting import start_worker
from butterfly.embedded.building import (
    PipelineModel,
    choose_weights,
    coordinator_config,
    memory_options,
    open_model,
    worker_command,
    worker_memory_bytes,
)
from butterfly.embedded.door import open_door, told_host
from butterfly.embedded.watching import Watching, unwatched
from butterfly.errors import LaunchError
from butterfly.folders import state_folder
from butterfly.grammars import GrammarCompiler
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.specs import ClusterStatus, WeightFormat

COORDINATOR = "coordinator"
_LOOK_S = 0.05  # between two looks at a cluster that comes up


@dataclass(frozen=True)
class EmbeddedCluster:
    """What a program works with while the cluster runs."""

    model: models.Model
    client: CoordinatorClient
    grammars: GrammarCompiler
    metrics: Metrics
    statistics: StepStatistics
    watching: Watching
    weights: WeightFormat
    join_line: str = field(default="", repr=False)  # for other machines; has a secret

    def wait_until_ready(self) -> ClusterStatus:
        """Wait until every stage is loaded, watched. Raises LaunchError with the reason when that fails."""
        with self.watching() as watcher:
            while True:
                status = self.client.status()
                watcher.show(status)
                if status.phase == "ready":
                    return status
                if status.phase in ("failed", "stopping"):
                    raise LaunchError(status.detail or "the cluster did not start")
                if not self.client.is_alive:
                    raise LaunchError("the coordinator stopped; its log says why (log level debug says most)")
                time.sleep(_LOOK_S)


@contextmanager
def embedded_cluster(config: ClusterConfig, watching: Watching = unwatched) -> Iterator[EmbeddedCluster]:
    """Open the model and start workers and coordinator; leave no process behind, however the block ends.

    The cluster loads in the background: `wait_until_ready`. Raises ModelError, ConfigError, LaunchError.
    """
    model = open_model(config, watching)
    names = [f"worker-{index}" for index in range(config.num_workers)]
    prefixes = dict(zip(names, config.worker_prefixes, strict=False))
    memory_bytes = dict(zip(names, worker_memory_bytes(config), strict=True))
    weights = choose_weights(config, model, memory_bytes)
    model = models.with_weights(model, config.dtype, weights)
    settings = coordinator_config(config, model, weights)
    with ExitStack() as stack:
        ending = _QuietEnding()
        stack.callback(ending.over)
        state = CoordinatorState(state_folder()) if config.is_open else None
        keys = state.keys if state else KeyPair.generate()
        host, told = config.listen_host, told_host(config.listen_host)
        transport = ZmqTransport(COORDINATOR, keys, host, encrypt=config.encrypt, advertised_host=told)
        stack.callback(transport.close)
        inbox = transport.open_inbox(config.listen_port + 1 if config.is_open else 0)
        door = stack.enter_context(open_door(config, state, transport, inbox, model)) if state else None
        settings = msgspec.structs.replace(settings, blobs=door.blobs if door else None)
        launcher = stack.enter_context(LocalLauncher(worker_command(config), prefixes, memory_options(memory_bytes)))
        metrics = Metrics()
        coordinator = Coordinator(
            PipelineModel(model),
            launcher,
            transport,
            inbox,
            settings,
            ClusterState(
                names,
                time.monotonic(),
                Deadlines(heartbeat_timeout_s=config.heartbeat_timeout_s),
                is_open=config.is_open,
            ),
            metrics,
            revoked=door.revoked if door else lambda: (),
        )
        for name in names:
            start_worker(name, inbox.address, transport, launcher)
        grammars = GrammarCompiler(model.tokenizer, model.eos_token_ids, model.spec.vocab_size)
        if model.eos_token_ids:  # without, no output could end where its grammar is complete: all are refused
            grammars.prepare()  # now, while the workers start: later it would hold up a request, and all others
        client = CoordinatorClient(coordinator, grammars)
        stack.callback(client.stop, "the server stopped")
        client.start()
        stack.callback(ending.begins)
        line = door.join_line if door else ""
        yield EmbeddedCluster(model, client, grammars, metrics, coordinator.statistics, watching, weights, line)


class _QuietEnding:
    """Ignores Ctrl-C between `begins` and `over`.

    An ending is short and every part of it has a deadline: a second Ctrl-C would only leave it half done. Only the
    main thread hears signals and may say what they do; an ending on another thread is never interrupted.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], object] | int | None = None

    def begins(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def over(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
