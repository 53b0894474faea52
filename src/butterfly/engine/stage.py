"""One pipeline stage on one device: weights, KV cache, forward pass, head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import torch

from butterfly.engine.batching import arrange
from butterfly.engine.decoder import DecoderLayer, RMSNorm
from butterfly.engine.device import TORCH_DTYPES, return_free_memory
from butterfly.engine.embedding import Embedding
from butterfly.engine.head import Answer, Head
from butterfly.engine.kv_cache import KVCache
from butterfly.engine.linear import LinearLoader
from butterfly.engine.rope import Rope
from butterfly.engine.tensor_data import TensorFiles
from butterfly.errors import ModelFormatError, ProtocolError
from butterfly.specs import ComputeDType, ModelSpec, StagePlan, StepPlan, TensorEntry, WeightFormat

Progress = Callable[[int, int], None]  # stored bytes converted so far, in all


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
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Materialise the tensors of this stage. Raises ModelFormatError, ModelNotFoundError."""
        self.model, self.plan = model, stage
        self.device, self.dtype = device, TORCH_DTYPES[dtype]
        self._files = TensorFiles()
        by_name = {entry.name: entry for entry in tensors}
        loader = LinearLoader(self._files, device, self.dtype, weights)
        self._ropes = [Rope(spec, device) for spec in model.ropes]
        try:
            layers = self._load(by_name, loader, _Reporter(tensors, progress))
        except KeyError as error:
            raise ModelFormatError(f"tensor {error.args[0]} is missing from the model") from error
        return_free_memory()
        self._hold(layers)

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

    def _load(self, tensors: dict[str, TensorEntry], loader: LinearLoader, report: _Reporter) -> Sequence[DecoderLayer]:
        model, plan = self.model, self.plan
        self._embedding = self._head = None
        if plan.embedding:
            entry = tensors["embedding"]
            self._embedding = Embedding(self._files, entry, model.embedding_scale, self.device, self.dtype)
        layers: list[DecoderLayer] = []
        for index in range(plan.start, plan.end):
            layers.append(DecoderLayer(model, index, self._ropes, tensors, loader))
            report.loaded(f"layers.{index}.")
        if plan.head:
            norm = RMSNorm(loader.vector(tensors["output_norm"]), model.norm_eps)
            self._head = Head(norm, loader.load_head(tensors["lm_head"]))
        report.loaded("")
        return layers

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
        return output if self._head is None else self._head.answer(step, output)

    @torch.inference_mode()
    def forward(self, step: StepPlan, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Drop, adopt, then run the decoder layers of this stage; return hidden states [tokens, hidden_size]."""
        for sequence_id in step.released:
            self._kv.release(sequence_id)
        for adoption in step.adopted:
            self._kv.adopt(adoption)
        x = self._enter(step, hidden)
        if not len(x):
            return x
        arranged = arrange(step, self._kv, self._ropes, self._windows, self.device)
        x = arranged.enter(x)
        for slot, layer in enumerate(self._layers):
            x = layer(x, arranged.batch, slot)
        return arranged.leave(x)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [rows, vocab_size] of hidden states after the last layer."""
        assert self._head is not None, "only the stage with the head has logits"
        return self._head.logits(hidden)

    def _enter(self, step: StepPlan, hidden: torch.Tensor | None) -> torch.Tensor:
        if self._embedding is not None:
            return self._embedding([token for sequence in step.sequences for token in sequence.token_ids])
        if hidden is None or hidden.shape != (step.num_tokens, self.model.hidden_size):
            raise ProtocolError(f"step {step.step_id} came without hidden states for its {step.num_tokens} tokens")
        return hidden.to(self.device)


class _Reporter:
    """Turns "these tensors are done" into bytes of progress."""

    def __init__(self, tensors: Sequence[TensorEntry], progress: Progress) -> None:
        self._waiting = {entry.name: entry.num_bytes for entry in tensors}
        self._total = sum(self._waiting.values())
        self._progress = progress

    def loaded(self, prefix: str) -> None:
        for name in [name for name in self._waiting if name.startswith(prefix)]:
            del self._waiting[name]
        self._progress(self._total - sum(self._waiting.values()), self._total)
