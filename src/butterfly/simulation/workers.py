"""Modelled workers as processes: they beat, die, load stages and come back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from butterfly import cluster as world
from butterfly.partitioning import costs
from butterfly.simulation.specs import FaultSpec, SimulationConfig
from butterfly.simulation.virtual_clock import VirtualClock
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, StagePlan


class ModelledWorkers:
    """`tell` hears what they say, and what their launcher sees of them."""

    def __init__(
        self,
        cluster: ClusterSpec,
        model: ModelFootprint,
        config: SimulationConfig,
        clock: VirtualClock,
        tell: Callable[[world.Event], None],
    ) -> None:
        self._nodes = {node.name: node for node in cluster.nodes}
        self._model, self._config, self._clock, self._tell = model, config, clock, tell
        self.dead: set[str] = set()
        self._held: dict[str, StagePlan] = {}  # the stage that each worker loaded last
        self._newest_epoch = 0

    def start(self) -> None:
        """Let every worker join, and book their beats and their deaths. Raises ValueError: a fault of nobody."""
        for fault in self._config.faults:
            if fault.worker not in self._nodes:
                raise ValueError(f"a fault of worker {fault.worker}, which is not in the cluster")
        for name in self._nodes:
            self._join(name)
        for fault in self._config.faults:
            self._clock.at(fault.at_s, partial(self._strike, fault))
        for name in self._nodes:
            self._clock.every(self._config.beat_interval_s, partial(self._beat, name))

    def load(self, plan: Plan, epoch: int) -> None:
        """What a worker has already is not loaded again. The first load takes no time: the story begins after it."""
        is_first, self._newest_epoch = not self._newest_epoch, epoch
        for stage in plan.stages:
            missing = _missing_bytes(self._model, stage, self._held.get(stage.worker))
            seconds = 0.0 if is_first else missing / self._config.load_bytes_per_s
            if stage.worker not in self.dead:
                self._held[stage.worker] = stage
            self._clock.at(self._clock.now_s + seconds, partial(self._finish_loading, stage, epoch))

    def restart(self, name: str) -> None:
        if self._config.restart_s is not None:
            self._clock.at(self._clock.now_s + self._config.restart_s, partial(self._come_back, name))

    def _finish_loading(self, stage: StagePlan, epoch: int) -> None:
        if stage.worker not in self.dead and epoch == self._newest_epoch:
            self._tell(
                world.WorkerLoaded(now_s=self._clock.now_s, worker=stage.worker, weight_bytes=stage.weight_bytes)
            )

    def _join(self, name: str) -> None:
        self._tell(world.WorkerJoined(now_s=self._clock.now_s, worker=name, node=self._nodes[name]))

    def _come_back(self, name: str) -> None:
        self.dead.discard(name)
        self._join(name)

    def _strike(self, fault: FaultSpec) -> None:
        if fault.worker in self.dead:
            return
        self.dead.add(fault.worker)
        self._held.pop(fault.worker, None)
        if fault.kind == "exit":
            self._tell(world.WorkerExited(now_s=self._clock.now_s, worker=fault.worker, returncode=-9))

    def _beat(self, name: str) -> bool:
        if name not in self.dead:
            self._tell(world.WorkerBeat(now_s=self._clock.now_s, worker=name, resident_bytes=0, kv_used_bytes=0))
        return True


def _missing_bytes(model: ModelFootprint, stage: StagePlan, held: StagePlan | None) -> int:
    """Bytes of weights that a worker with one stage has still to load for another."""
    if held is None:
        return stage.weight_bytes
    start, end = max(stage.start, held.start), min(stage.end, held.end)
    kept = costs.weight_bytes(
        model,
        start,
        max(start, end),
        embedding=stage.embedding and held.embedding,
        head=stage.head and held.head,
    )
    return max(0, stage.weight_bytes - kept)
