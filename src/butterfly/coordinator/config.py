"""What a coordinator is told once, at its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from butterfly.coordinator.suspicion import Patience
from butterfly.messages import PeerAddress
from butterfly.scheduling import SchedulerConfig
from butterfly.specs import (
    ComputeDType,
    ModelFootprint,
    ModelSpec,
    Plan,
    PlanConstraints,
    PrefixReuse,
    Spec,
    TensorEntry,
    WeightFormat,
    WorkloadSpec,
)

BLOCK_SIZE = 16  # tokens: the unit of KV accounting


class PipelineModel(Protocol):
    """What the coordinator wants of a model: its shape, its sizes, and which tensors a stage or a profile needs."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def footprint(self) -> ModelFootprint: ...

    def stage_tensors(self, start: int, end: int, *, embedding: bool, head: bool) -> Sequence[TensorEntry]: ...

    def profile_tensors(self) -> tuple[Sequence[int], Sequence[TensorEntry]]:
        """One layer of each kind, in the order of the kinds' numbers; their tensors, and those of norm and lm_head."""


class CoordinatorConfig(Spec, frozen=True):
    """The options of one coordinator. Times in seconds."""

    workload: WorkloadSpec
    constraints: PlanConstraints = PlanConstraints()
    measure: bool = True  # False: plan from the rates that workers join with, and default links
    dtype: ComputeDType = "bfloat16"
    weights: WeightFormat = "int4"
    num_slots: int = 0  # steps in flight; 0: one per stage and one spare; 1: the plain loop
    max_num_batched_tokens: int = 512
    max_waiting_tokens: int = 1 << 20
    prefix_reuse: PrefixReuse = "all"
    target_ttft_s: float = 60.0  # requests that would wait longer for their prefill are refused
    patience: Patience = Patience()  # with late steps
    send_timeout_s: float = 5.0
    blobs: PeerAddress | None = None  # where workers without the model's file get their tensors; None: all have it


def scheduler_config(config: CoordinatorConfig, plan: Plan, max_context: int) -> SchedulerConfig:
    """What the scheduler may use under this plan. `max_context`: tokens of one request."""
    # Each sequence may leave a part of its last block empty; without this the full context would not fit.
    rounding = config.workload.concurrency * (BLOCK_SIZE - 1)
    return SchedulerConfig(
        num_slots=config.num_slots or len(plan.stages),
        num_spare_slots=0 if config.num_slots else 1,
        max_num_sequences=config.workload.concurrency,
        kv_capacity_tokens=plan.kv_capacity_tokens + rounding,
        block_size=BLOCK_SIZE,
        max_context=max_context,
        max_waiting_tokens=config.max_waiting_tokens,
        max_num_batched_tokens=config.max_num_batched_tokens,
        prefix_reuse=config.prefix_reuse,
        target_ttft_s=config.target_ttft_s,
    )
