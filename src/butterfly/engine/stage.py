"""One pipeline stage on one device: weights, KV cache, forward pass, head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch

from butterfly.engine.batching import arrange
from butterfly.engine.border import Border
from butterfly.engine.decoder import DecoderLayer, RMSNorm
from butterfly.engine.device import TORCH_DTYPES, return_free_memory
from butterfly.engine.embedding import Embedding
from butterfly.engine.head import Answer, Head
from butterfly.engine.kv_cache import KVCache
from butterfly.engine.linear import LinearLoader
from butterfly.engine.parts import Parts, Recipe, StageTensors, Tensors, group_tensors
from butterfly.engine.tensor_data import TensorFiles
from butterfly.errors import ModelFormatError, ProtocolError
from butterfly.specs import (
    ComputeDType,
    KeptSequence,
    LayerRange,
    ModelSpec,
    StagePlan,
    StepPlan,
    TensorEntry,
    WeightFormat,
)

Progress = Callable[[int, int], None]  # stored bytes that are done with, in all


@dataclass(frozen=True)
class Loading:
    """How a stage comes by its weights."""

    progress: Progress = lambda done, total: None
    locate: Callable[[Sequence[TensorEntry]], Sequence[TensorEntry]] = lambda tensors: tensors
    """Where the bytes of these tensors are on this machine. Asked once, for those that are not held already."""
    previous: Stage | None = None
    """Given up: its layers and ends that are wanted again are taken over, all else is freed, and it never runs again.
    When loading fails, it holds what is there by then, and can be the `previous` of another try."""
    kept: Sequence[KeptSequence] = ()
    """Sequences that go on; in layers that do not keep their cache they are to be refilled."""
    keeps_cache: bool = False
    """Whether the cache of `previous`, in the layers that are taken over, is that of `kept`, and so are the hidden
    states that it handed on. False: it is older."""


class Stage:
    """Layers [start, end) of a model, with embedding and head where the plan says so.

    `run(step, hidden)` is the whole contract: hidden states [tokens, hidden_size] in and out, token ids in on the
    first stage, an answer out on the last.
    """

    def __init__(
        self,
        model: ModelSpec,
        stage: StagePlan,
        tensors: Sequence[TensorEntry],
        *,
        device: torch.device,
        dtype: ComputeDType,
        weights: WeightFormat = "int4",
        loading: Loading = Loading(),
    ) -> None:
        """Materialise the tensors of this stage. Raises ModelFormatError, ModelNotFoundError.

        A tensor is known again by its whole entry, as it is given here; `loading.locate` may find its bytes elsewhere.
        """
        self.model, self.plan = model, stage
        self.device, self.dtype = device, TORCH_DTYPES[dtype]
        self._is_given_up = False
        recipe, previous = Recipe(model, device, self.dtype, weights), loading.previous
        before = previous._memory if previous is not None and loading.keeps_cache else None
        if before is not None:  # what nobody goes on with goes before anything is loaded
            before.keep(loading.kept)
        try:
            wanted = group_tensors(stage, tensors)
            self._parts = Parts(recipe) if previous is None else previous._give_up(recipe, wanted)
            self._load(wanted, loading)
        except KeyError as error:
            raise ModelFormatError(f"tensor {error.args[0]} is missing from the model") from error
        return_free_memory()
        self._ropes = self._parts.ropes
        self._embedding = self._parts.embeddings.get(wanted.embedding)
        self._head = self._parts.heads.get(wanted.head)
        self._hold([self._parts.layers[layer] for layer in wanted.layers])
        if loading.kept:
            self._remember(before, loading.kept)
        if previous is not None:
            previous._parts = Parts(recipe)

    def with_layers(self, layers: Sequence[DecoderLayer]) -> Stage:
        """For measuring: this stage with other layers in place of its own and an empty cache; all else is shared."""
        other = copy(self)
        other._hold(layers)
        return other

    def _hold(self, layers: Sequence[DecoderLayer]) -> None:
        self._layers = list(layers)
        self._windows = {layer.window for layer in layers}
        self._kv = KVCache(
            len(layers),
            self.model.num_kv_heads,
            self.model.head_dim,
            max_context=self.model.max_context,
            device=self.device,
            dtype=self.dtype,
        )
        self._borders = {} if self.plan.head else {self.plan.end: self._new_border()}

    def _new_border(self) -> Border:
        return Border(self.model.hidden_size, self.dtype, self.device)

    @property
    def _memory(self) -> _Memory:
        return _Memory(self.plan, self._kv, self._borders)

    @torch.inference_mode()
    def _remember(self, before: _Memory | None, kept: Sequence[KeptSequence]) -> None:
        """Let these sequences go on, with what the stage before had of them."""
        start, end = (before.plan.start, before.plan.end) if before is not None else (0, 0)
        slots = [layer - start if start <= layer < end else None for layer in range(self.plan.start, self.plan.end)]
        self._kv.take_over(before.kv if before is not None else None, slots, kept)
        border = before.borders.get(end) if before is not None else None
        if border is not None and self.plan.start < end <= self.plan.end:
            self._borders[end] = border

    def _give_up(self, recipe: Recipe, wanted: StageTensors) -> Parts:
        """Let go of all but the parts that a stage of this recipe wants, and return those."""
        self._is_given_up = True
        self._embedding = self._head = None
        self._hold(())
        if self._parts.recipe != recipe:
            self._parts = Parts(recipe)
        self._parts.drop_all_but(set(wanted.parts()))
        return_free_memory()  # what comes may need it
        return self._parts

    def _load(self, wanted: StageTensors, loading: Loading) -> None:
        """Make the parts that are not there yet."""
        model, parts = self.model, self._parts
        report = _Reporter(wanted, parts, loading.progress)
        missing = [entry for tensors in wanted.parts() if tensors not in parts for entry in tensors]
        found = {entry.name: entry for entry in loading.locate(missing)} if missing else {}
        files = TensorFiles()
        loader = LinearLoader(files, self.device, self.dtype, parts.recipe.weights)
        if wanted.embedding and wanted.embedding not in parts:
            embedding = Embedding(files, found["embedding"], model.embedding_scale, self.device, self.dtype)
            parts.embeddings[wanted.embedding] = embedding
            report.done(wanted.embedding)
        for index, layer in enumerate(wanted.layers, self.plan.start):
            if layer not in parts:
                parts.layers[layer] = DecoderLayer(model, index, parts.ropes, found, loader)
                report.done(layer)
        if wanted.head and wanted.head not in parts:
            norm = RMSNorm(loader.vector(found["output_norm"]), model.norm_eps)
            parts.heads[wanted.head] = Head(norm, loader.load_head(found["lm_head"]))
            report.done(wanted.head)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights held in memory."""
        ends = (self._embedding, self._head)
        return sum(layer.num_bytes for layer in self._layers) + sum(end.num_bytes for end in ends if end)

    @property
    def layers(self) -> Sequence[DecoderLayer]:
        return self._layers

    @property
    def kv_used_bytes(self) -> int:
        return self._kv.used_bytes

    def pretend(self, sequence_id: int, num_tokens: int) -> None:
        """For measuring: let a sequence have just so many cached tokens, without computing them."""
        self._kv.pretend(sequence_id, num_tokens)

    @torch.inference_mode()
    def run(self, step: StepPlan, hidden: torch.Tensor | None = None) -> torch.Tensor | Answer:
        """Run one step: hidden states [tokens, hidden_size] for the next stage, or the answer of the last one.

        Raises ProtocolError for a step that does not fit the cached sequences, hidden states that are not the
        step's, or a token mask that cannot be used.
        """
        output = self.forward(step, hidden)
        if self._head is None:
            return output
        return self._head.answer(step, output) if step.refill is None else Answer((), ())

    @torch.inference_mode()
    def forward(self, step: StepPlan, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Drop, adopt, then run the decoder layers of this stage; return hidden states [tokens, hidden_size].

        Of a step that refills: those of the layers that it names, and no rows where the next stage needs none.
        """
        assert not self._is_given_up, "another stage took this one over"
        for sequence_id in step.released:
            self._release(sequence_id)
        for adoption in step.adopted:
            self._kv.adopt(adoption)
            for border in self._borders.values():
                border.adopt(adoption)
        if step.refill is not None:
            return self._refill(step, step.refill, hidden)
        x = self._compute(step, self._enter(step, hidden), range(len(self._layers)))
        if self.plan.end in self._borders:
            self._borders[self.plan.end].write(step, x)
        return x

    def _refill(self, step: StepPlan, layers: LayerRange, hidden: torch.Tensor | None) -> torch.Tensor:
        """Compute cached tokens once more, in our share of these layers."""
        start, end = self.plan.start, self.plan.end
        first, last = max(start, layers.start), min(end, layers.end)
        if layers.start == end:
            return self._border_at(end).read(step)
        if first >= last:
            return self._no_rows()
        x = self._enter(step, hidden) if first == start else self._border_at(first).read(step)
        x = self._compute(step, x, range(first - start, last - start))
        if last == end and end in self._borders:
            self._borders[end].write(step, x)
        return x if layers.enters(end) else self._no_rows()

    def _compute(self, step: StepPlan, x: torch.Tensor, slots: Iterable[int]) -> torch.Tensor:
        """Run hidden states through the layers in these slots."""
        if not len(x):
            return x
        arranged = arrange(step, self._kv, self._ropes, self._windows, self.device)
        x = arranged.enter(x)
        for slot in slots:
            x = self._layers[slot](x, arranged.batch, slot)
        return arranged.leave(x)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [rows, vocab_size] of hidden states after the last layer."""
        assert self._head is not None, "only the stage with the head has logits"
        return self._head.logits(hidden)

    def _release(self, sequence_id: int) -> None:
        self._kv.release(sequence_id)
        for border in self._borders.values():
            border.release(sequence_id)

    def _enter(self, step: StepPlan, hidden: torch.Tensor | None) -> torch.Tensor:
        """Return the hidden states before our first layer."""
        if self._embedding is not None:
            return self._embedding([token for sequence in step.sequences for token in sequence.token_ids])
        if hidden is None or hidden.shape != (step.num_tokens, self.model.hidden_size):
            raise ProtocolError(f"step {step.step_id} came without hidden states for its {step.num_tokens} tokens")
        return hidden.to(self.device)

    def _border_at(self, layer: int) -> Border:
        if layer not in self._borders:
            raise ProtocolError(f"no hidden states were kept before layer {layer}")
        return self._borders[layer]

    def _no_rows(self) -> torch.Tensor:
        return torch.empty(0, self.model.hidden_size, dtype=self.dtype, device=self.device)


class _Memory(NamedTuple):
    """What a stage knows of its sequences."""

    plan: StagePlan
    kv: KVCache
    borders: dict[int, Border]  # by the layer before which they are

    def keep(self, kept: Sequence[KeptSequence]) -> None:
        self.kv.keep(kept)
        for border in self.borders.values():
            border.keep(kept)


class _Reporter:
    """Turns "this part is done" into bytes of progress. What was taken over is done from the beginning."""

    def __init__(self, wanted: StageTensors, held: Parts, progress: Progress) -> None:
        self._total = sum(map(_stored_bytes, wanted.parts()))
        self._done = sum(_stored_bytes(tensors) for tensors in wanted.parts() if tensors in held)
        self._progress = progress
        progress(self._done, self._total)

    def done(self, tensors: Tensors) -> None:
        self._done += _stored_bytes(tensors)
        self._progress(self._done, self._total)


def _stored_bytes(tensors: Tensors) -> int:
    return sum(entry.num_bytes for entry in tensors)
