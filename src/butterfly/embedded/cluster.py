"""The embedded cluster: started, handed out, torn down."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

import msgspec

from butterfly import models
from butterfly.cluster import ClusterState, Deadlines, LocalLauncher, RayLauncher
from butterfly.communication import Inbox, KeyPair, ZmqTransport
from butterfly.communication.identity import CoordinatorState
from butterfly.config import ClusterConfig
from butterfly.coordinator import Coordinator, CoordinatorClient, CoordinatorConfig
from butterfly.coordinator.starting import start_worker
from butterfly.embedded.building import (
    PipelineModel,
    choose_weights,
    coordinator_config,
    open_model,
    worker_memory_bytes,
)
from butterfly.embedded.door import Door, open_door, told_host
from butterfly.embedded.place_filling import PlaceFiller
from butterfly.embedded.watching import Watching, unwatched
from butterfly.embedded.workforce import names_to_start, open_launcher, worker_names
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
    memory_bytes = dict(zip(worker_names(config.num_workers), worker_memory_bytes(config), strict=False))
    weights = choose_weights(config, model, memory_bytes)
    model = models.with_weights(model, config.dtype, weights)
    settings = coordinator_config(config, model, weights)
    with ExitStack() as stack:
        ending = _QuietEnding()
        stack.callback(ending.over)
        border = stack.enter_context(_open_border(config, model))
        settings = msgspec.structs.replace(settings, blobs=border.door.blobs if border.door else None)
        launcher = open_launcher(config, memory_bytes)
        stack.enter_context(launcher)
        metrics = Metrics()
        coordinator = _start_workers(config, settings, model, launcher, border, metrics)
        grammars = GrammarCompiler(model.tokenizer, model.eos_token_ids, model.spec.vocab_size)
        if model.eos_token_ids:  # without, no output could end where its grammar is complete: all are refused
            grammars.prepare()  # now, while the workers start: later it would hold up a request, and all others
        client = CoordinatorClient(coordinator, grammars)
        stack.callback(client.stop, "the server stopped")
        client.start()
        stack.callback(ending.begins)
        line = border.door.join_line if border.door else ""
        yield EmbeddedCluster(model, client, grammars, metrics, coordinator.statistics, watching, weights, line)


class _Border(NamedTuple):
    """Where workers reach the coordinator."""

    transport: ZmqTransport
    inbox: Inbox
    door: Door | None


@contextmanager
def _open_border(config: ClusterConfig, model: models.Model) -> Iterator[_Border]:
    """The door is open to strangers only if others may join; to fetch tensors, also for workers on other machines."""
    state = CoordinatorState(state_folder()) if config.is_open else None
    keys = state.keys if state else KeyPair.generate()
    told = told_host(config)
    transport = ZmqTransport(COORDINATOR, keys, config.listen_host, encrypt=config.encrypt, advertised_host=told)
    with closing(transport):
        inbox = transport.open_inbox(config.listen_port + 1 if config.is_open else 0)
        if not (config.is_open or config.ray_address):
            yield _Border(transport, inbox, None)
            return
        with open_door(config, state, transport, inbox, model) as door:
            yield _Border(transport, inbox, door)


def _start_workers(
    config: ClusterConfig,
    settings: CoordinatorConfig,
    model: models.Model,
    launcher: LocalLauncher | RayLauncher,
    border: _Border,
    metrics: Metrics,
) -> Coordinator:
    """Start them, and return the coordinator that waits for them."""
    names = names_to_start(config, launcher)
    deadlines = Deadlines(heartbeat_timeout_s=config.heartbeat_timeout_s)
    state = ClusterState(names, time.monotonic(), deadlines, is_open=config.takes_newcomers)

    def invite(name: str) -> None:
        start_worker(name, border.inbox.address, border.transport, launcher)

    filler = None
    if config.fills_places and isinstance(launcher, RayLauncher):
        filler = PlaceFiller(launcher, invite, state, names, deadlines)
    coordinator = Coordinator(
        PipelineModel(model),
        launcher if filler is None else filler,
        border.transport,
        border.inbox,
        settings,
        state,
        metrics,
        revoked=border.door.revoked if border.door else lambda: (),
    )
    if border.door and border.door.admission:
        border.door.admission.admit = coordinator.let_in
    if isinstance(launcher, LocalLauncher):
        launcher.on_exit = coordinator.look_for_exits
    for name in names:
        invite(name)
    return coordinator


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
