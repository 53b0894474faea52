"""Stages in one process, driven by the real scheduler: what the exactness tests compare."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from butterfly.engine import Answer, Stage
from butterfly.models import Model, stage_tensors
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import (
    ComputeDType,
    Request,
    SequenceStep,
    StagePlan,
    StepPlan,
    StepResult,
    WeightFormat,
)


class LocalPipeline:
    """The stages of a model split before the given layers, handing hidden states to each other."""

    def __init__(
        self,
        model: Model,
        boundaries: Sequence[int] = (),
        dtype: ComputeDType = "bfloat16",
        weights: WeightFormat = "int4",
    ) -> None:
        edges = [0, *boundaries, model.spec.num_layers]
        self.model = model
        self.stages = [load_stage(model, start, end, dtype, weights) for start, end in pairwise(edges)]

    def run(self, step: StepPlan) -> Answer:
        hidden: torch.Tensor | None = None
        for stage in self.stages:
            output = stage.run(step, hidden)
            if isinstance(output, Answer):
                return output
            hidden = output
        raise AssertionError("no stage had the head")

    def result(self, step: StepPlan) -> StepResult:
        """Run a step and return what the coordinator would hear of it."""
        answer = self.run(step)
        return StepResult(step_id=step.step_id, samples=answer.samples, scores=answer.scores)

    def forward(self, step: StepPlan) -> torch.Tensor:
        """Run a step up to the head: hidden states [tokens, hidden_size] after the last layer."""
        hidden: torch.Tensor | None = None
        for stage in self.stages:
            hidden = stage.forward(step, hidden)
        assert hidden is not None
        return hidden

    def logits(self, token_ids: Sequence[int], chunk: int | None = None) -> torch.Tensor:
        """Float32 logits [tokens, vocab] of one sequence, prefilled in chunks."""
        rows = []
        chunk = chunk or len(token_ids)
        for start in range(0, len(token_ids), chunk):
            part = tuple(token_ids[start : start + chunk])
            sequence = SequenceStep(
                sequence_id=1 << 40,
                start=start,
                num_tokens=len(part),
                prompt_length=len(token_ids),
                token_ids=part,
            )
            step = StepPlan(step_id=0, slot=0, sequences=(sequence,), released=(1 << 40,) if start == 0 else ())
            rows.append(self.stages[-1].logits(self.forward(step)))
        return torch.cat(rows)

    def generate(
        self, requests: Sequence[Request], config: SchedulerConfig | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Run all requests together through the real scheduler and return their output tokens."""
        scheduler = Scheduler(config or scheduler_config(self.model))
        tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
        for request in requests:
            scheduler.add(request, 0.0)
        while (step := scheduler.schedule()) is not None:
            for output in scheduler.update(self.result(step)):
                tokens[output.request_id] += output.token_ids
        assert not scheduler.has_unfinished
        scheduler.requeue_all()  # so that it tells the stages to drop what it keeps: the next scheduler knows nothing
        if (step := scheduler.schedule()) is not None:
            self.run(step)
        return {request_id: tuple(ids) for request_id, ids in tokens.items()}


def load_stage(
    model: Model, start: int, end: int, dtype: ComputeDType = "bfloat16", weights: WeightFormat = "int4"
) -> Stage:
    """Layers [start, end), with embedding and head when they are the first and the last."""
    embedding, head = start == 0, end == model.spec.num_layers
    plan = StagePlan(
        worker=f"{start}:{end}",
        start=start,
        end=end,
        embedding=embedding,
        head=head,
        weight_bytes=0,
        kv_bytes=0,
        predicted_compute_s=0.0,
    )
    tensors = stage_tensors(model, start, end, embedding=embedding, head=head)
    return Stage(model.spec, plan, tensors, device=torch.device("cpu"), dtype=dtype, weights=weights)


def even_boundaries(num_layers: int, num_stages: int) -> list[int]:
    return [num_layers * index // num_stages for index in range(1, num_stages)]


def scheduler_config(model: Model, *, max_num_batched_tokens: int = 512, num_sequences: int = 64) -> SchedulerConfig:
    return SchedulerConfig(
        num_slots=1,
        max_num_sequences=num_sequences,
        kv_capacity_tokens=num_sequences * model.spec.max_context,
        max_context=model.spec.max_context,
        max_waiting_tokens=1 << 30,
        max_num_batched_tokens=max_num_batched_tokens,
        first_chunk_tokens=max_num_batched_tokens,  # chunks of just this size, since nothing is timed here
        prefix_reuse="off",  # every request computes all of its tokens: what is compared is how
    )
