"""What a coordinator is told once, at its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from butterfly.specs import (
    ComputeDType,
    ModelFootprint,
    ModelSpec,
    PlanConstraints,
    PrefixReuse,
    Spec,
    TensorEntry,
    WeightFormat,
    WorkloadSpec,
)


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
    step_timeout_s: float = 300.0  # one step through all stages, longest prefill chunk included
    send_timeout_s: float = 5.0
