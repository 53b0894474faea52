"""Modelled devices: a stage that computes and a link that carries, each one thing at a time, in order."""

from __future__ import annotations

from butterfly.partitioning import costs
from butterfly.specs import LinkSpec, ModelFootprint, NodeSpec, StagePlan, StageTiming, StepPlan


class ModelledStage:
    """One stage on one node; `busy_s` adds up the seconds it computed."""

    def __init__(self, stage: StagePlan, node: NodeSpec, model: ModelFootprint, rows_per_weight_pass: int) -> None:
        self.worker = stage.worker
        self.alive = True
        self.busy_s = 0.0
        self._free_s = 0.0
        self._bandwidth = node.memory_bandwidth_bytes_per_s
        self._weight_bytes = costs.pass_weight_bytes(model, stage)
        self._kv_bytes_per_token = costs.kv_bytes_per_token(model, stage.start, stage.end)
        self._rows_per_row = costs.ROWS_PER_WEIGHT_PASS / rows_per_weight_pass

    def run(self, step: StepPlan, received_bytes: int, now_s: float) -> StageTiming:
        """Queue a step that arrives now and return when it starts and is done."""
        seconds = self._compute_s(step) + self._copy_s(step)
        started_s = max(now_s, self._free_s)
        self.busy_s += seconds
        self._free_s = started_s + seconds
        return StageTiming(
            worker=self.worker,
            received_s=now_s,
            started_s=started_s,
            finished_s=self._free_s,
            received_bytes=received_bytes,
        )

    def _compute_s(self, step: StepPlan) -> float:
        """What is reused is read, like all that is cached, but not computed."""
        if not step.num_tokens:
            return 0.0  # a step that only tells news
        kv_tokens = sum(sequence.start + sequence.num_tokens for sequence in step.sequences)
        num_rows = round(step.num_tokens * self._rows_per_row)
        return costs.stage_s(self._weight_bytes, kv_tokens * self._kv_bytes_per_token, num_rows, self._bandwidth)

    def _copy_s(self, step: StepPlan) -> float:
        """Every byte of a copy is read and written; taking a cache over is free."""
        copied = sum(adoption.num_tokens for adoption in step.adopted if adoption.keeps_source)
        return 2 * copied * self._kv_bytes_per_token / self._bandwidth


class ModelledLink:
    """One direction of a link: bytes follow each other, latencies overlap."""

    def __init__(self, link: LinkSpec) -> None:
        self._link = link
        self._free_s = 0.0

    def send(self, num_bytes: int, now_s: float) -> float:
        """Queue a message now and return when its last byte arrives."""
        self._free_s = max(now_s, self._free_s) + num_bytes / self._link.bandwidth_bytes_per_s
        return self._free_s + self._link.latency_s
