"""Carries out MeasureCluster: asks the workers, takes their answers, and tells the cluster state how far it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from butterfly.cluster import ClusterMeasured, Event, MeasureCluster, MeasuringProgressed, WorkerFailed
from butterfly.coordinator.config import CoordinatorConfig, PipelineModel
from butterfly.coordinator.measuring import Measuring, Outgoing
from butterfly.coordinator.pipeline import Pipeline
from butterfly.errors import CommunicationError, ProtocolError
from butterfly.messages import LinksProbed, PeerAddress, Profile, Profiled
from butterfly.specs import ClusterSpec

_log = logging.getLogger(__name__)


class Measurement:
    """At most one at a time: a new one takes the place of that before. Used on the coordinator's thread."""

    def __init__(
        self,
        pipeline: Pipeline,
        home: PeerAddress,
        model: PipelineModel,
        config: CoordinatorConfig,
        tell: Callable[[Event], None],
    ) -> None:
        self._pipeline, self._home, self._model, self._config, self._tell = pipeline, home, model, config, tell
        self._measuring: Measuring | None = None

    def begin(self, wanted: MeasureCluster, hosts: Mapping[str, str], epoch: int) -> None:
        """`hosts` says which workers share a machine."""
        if not self._config.measure:
            merged = ClusterSpec(nodes=(*wanted.known.nodes, *wanted.nodes), links=wanted.known.links)
            self._tell(ClusterMeasured(now_s=time.monotonic(), cluster=merged))
            return
        layers, tensors = self._model.profile_tensors()
        blobs = self._config.blobs
        question = Profile(
            epoch=epoch,
            model=self._model.spec,
            layers=tuple(layers),
            tensors=tuple(tensors),
            dtype=self._config.dtype,
            weights=self._config.weights,
            sources=() if blobs is None else (blobs,),  # peers give nothing to who was not introduced to them
        )
        measuring = Measuring(wanted.nodes, hosts, self._pipeline.addresses, self._home, question, wanted.known)
        self._measuring = measuring
        self._go_on(measuring, measuring.start())

    def stop(self) -> None:
        """Late answers are dropped from now on."""
        self._measuring = None

    def forget(self, worker: str) -> None:
        """End a measurement that waits for this worker: it is lost."""
        waiting = self._measuring.waiting if self._measuring else None
        if waiting is not None and worker in waiting.workers:
            self._measuring = None

    def take(self, answer: Profiled | LinksProbed, sender: str) -> None:
        measuring = self._measuring
        waiting = None if measuring is None else measuring.waiting
        if measuring is None or waiting is None or sender not in waiting.workers:
            _log.debug("dropped a late %s of %s", type(answer).__name__, sender)
            return
        try:
            outgoing = measuring.take(answer, sender)
        except ProtocolError as error:  # dropping it would leave everybody waiting
            self._fail(sender, str(error))
            return
        self._go_on(measuring, outgoing)

    def _go_on(self, measuring: Measuring, outgoing: Sequence[Outgoing]) -> None:
        """Send what is to be asked next, and tell the cluster state whom we wait for, or what came out."""
        try:
            for worker, message in outgoing:
                self._pipeline.send(worker, message)
        except CommunicationError as error:
            self._fail(error.peer, str(error))
            return
        waiting, now_s = measuring.waiting, time.monotonic()
        if waiting is not None:
            self._tell(MeasuringProgressed(now_s=now_s, workers=waiting.workers, what=waiting.what))
            return
        self._measuring = None
        self._tell(ClusterMeasured(now_s=now_s, cluster=measuring.cluster()))

    def _fail(self, worker: str, reason: str) -> None:
        self._tell(WorkerFailed(now_s=time.monotonic(), worker=worker, reason=reason))
