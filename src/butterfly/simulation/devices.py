"""Modelled devices: a stage that computes and a link that carries, each one thing at a time, in order."""

from __future__ import annotations

from butterfly.partitioning import costs
from butterfly.specs import LinkSpec, ModelFootprint, NodeSpec, StagePlan, StepPlan


class ModelledStage:
    """One stage on one node; `busy_s` adds up the seconds it computed."""

    def __init__(self, stage: StagePlan, node: NodeSpec, model: ModelFootprint) -> None:
        self.worker = stage.worker
        self.alive = True
        self.busy_s = 0.0
        self._free_s = 0.0
        self._bandwidth = node.memory_bandwidth_bytes_per_s
        self._weight_bytes = costs.pass_weight_bytes(model, stage)
        self._kv_bytes_per_token = costs.kv_bytes_per_token(model, stage.start, stage.end)

    def run(self, step: StepPlan, now_s: float) -> float:
        """Queue a step that arrives now and return when it is done."""
        kv_tokens = sum(sequence.start + sequence.num_tokens for sequence in step.sequences)
        kv_bytes = kv_tokens * self._kv_bytes_per_token
        seconds = 0.0  # a step that only releases computes nothing
        if step.num_tokens:
            seconds = costs.stage_s(self._weight_bytes, kv_bytes, step.num_tokens, self._bandwidth)
        self.busy_s += seconds
        self._free_s = max(now_s, self._free_s) + seconds
        return self._free_s


class ModelledLink:
    """One direction of a link: bytes follow each other, latencies overlap."""

    def __init__(self, link: LinkSpec) -> None:
        self._link = link
        self._free_s = 0.0

    def send(self, num_bytes: int, now_s: float) -> float:
        """Queue a message now and return when its last byte arrives."""
        self._free_s = max(now_s, self._free_s) + num_bytes / self._link.bandwidth_bytes_per_s
        return self._free_s + self._link.latency_s
