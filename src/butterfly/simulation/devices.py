"""Modelled devices: a stage that computes and a link that carries, each one thing at a time, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from butterfly.partitioning import costs
from butterfly.specs import LinkSpec, ModelFootprint, NodeSpec, SequenceStep, StagePlan, StageTiming, StepPlan


class ModelledStage:
    """One stage on one node; `busy_s` adds up the seconds it computed."""

    def __init__(self, stage: StagePlan, node: NodeSpec, model: ModelFootprint, rows_per_weight_pass: int) -> None:
        self.worker = stage.worker
        self.busy_s = 0.0
        self._free_s = 0.0
        self._node, self._model, self._has_head = node, model, stage.head
        self._layers = _alike(model, stage)
        self._kv_bytes_per_token = costs.kv_bytes_per_token(model, stage.start, stage.end)
        self._rows_per_row = 1.0 if node.flops_per_s else costs.ROWS_PER_WEIGHT_PASS / rows_per_weight_pass

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
        return self._by_rates_s(step) if self._node.profile is None else self._by_profile_s(step.sequences)

    def _by_rates_s(self, step: StepPlan) -> float:
        """One pass over the weights serves all tokens, whatever their roles."""
        kv_tokens = sum(sequence.start + sequence.num_tokens for sequence in step.sequences)
        num_rows = round(step.num_tokens * self._rows_per_row)
        return self._layers_s(num_rows, kv_tokens, is_prompt=True) + self._head_s(num_rows)

    def _by_profile_s(self, sequences: Sequence[SequenceStep]) -> float:
        """Generated tokens are computed together, at the mean of their contexts, and each prompt for itself."""
        generated = [sequence.start for sequence in sequences if not sequence.num_prompt_tokens]
        seconds = costs.step_s(self._node) + self._head_s(sum(part.sampling is not None for part in sequences))
        if generated:
            seconds += self._layers_s(len(generated), sum(generated) // len(generated), is_prompt=False)
        for part in sequences:
            if part.num_prompt_tokens:
                seconds += self._layers_s(part.num_tokens, part.start, is_prompt=True)
        return seconds

    def _layers_s(self, num_tokens: int, context: int, *, is_prompt: bool) -> float:
        return sum(
            count * costs.layer_s(self._node, self._model, layer, num_tokens, context, is_prompt=is_prompt)
            for layer, count in self._layers
        )

    def _head_s(self, num_tokens: int) -> float:
        return costs.head_s(self._node, self._model, num_tokens) if self._has_head and num_tokens else 0.0

    def _copy_s(self, step: StepPlan) -> float:
        """Every byte of a copy is read and written; taking a cache over is free."""
        copied = sum(adoption.num_tokens for adoption in step.adopted if adoption.keeps_source)
        return 2 * copied * self._kv_bytes_per_token / self._node.memory_bandwidth_bytes_per_s


class ModelledLink:
    """One direction of a link: bytes follow each other; latencies, and the software at both ends, overlap."""

    def __init__(self, link: LinkSpec) -> None:
        self._link = link
        self._free_s = 0.0

    def send(self, num_bytes: int, now_s: float) -> float:
        """Queue a message now and return when the other end has it."""
        self._free_s = max(now_s, self._free_s) + num_bytes / self._link.bandwidth_bytes_per_s
        return self._free_s + self._link.latency_s + self._link.software_s


def _alike(model: ModelFootprint, stage: StagePlan) -> tuple[tuple[int, int], ...]:
    """(a layer, how many of the stage cost the same)."""

    def form(layer: int) -> tuple[int, int, int, int]:
        params = model.num_layer_params[layer] if model.num_layer_params else 0
        sizes = model.layer_weight_bytes[layer], model.kv_bytes_per_token[layer]
        return (model.layer_kind(layer), *sizes, params)

    layers = range(stage.start, stage.end)
    counts = Counter(map(form, layers))
    first = {form(layer): layer for layer in reversed(layers)}
    return tuple((first[one], count) for one, count in counts.items())
