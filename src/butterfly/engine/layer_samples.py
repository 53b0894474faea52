"""One layer of a model in as many copies as are asked for: a stage to measure, without loading all of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from msgspec.structs import replace

from butterfly.engine.decoder import DecoderLayer
from butterfly.engine.device import TORCH_DTYPES
from butterfly.engine.stage import Loading, Progress, Stage
from butterfly.specs import ComputeDType, ModelSpec, StagePlan, TensorEntry, WeightFormat

_ROW_MULTIPLE = 64  # of the packed kernels
_QUANTISED_VALUE_BYTES = 1.25  # two nibbles with the bf16 scale and zero of a group of 32; int8 takes less
_PLAIN = ("F32", "F16", "BF16")


class LayerSamples:
    """A layer that is loaded once, its copies, and a head if there is one.

    Copying is much faster than loading, which brings weights into the order of their kernels; and each copy has memory
    of its own, so that several of them are read from where the weights of a whole stage would be read from.
    """

    def __init__(
        self,
        model: ModelSpec,
        layer: int,
        tensors: Sequence[TensorEntry],
        *,
        device: torch.device,
        dtype: ComputeDType,
        weights: WeightFormat,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Load `layer`, and the head if `tensors` has one. Raises ModelFormatError, ModelNotFoundError."""
        prefix = f"layers.{layer}."
        of_layer = [entry for entry in tensors if entry.name.startswith(prefix)]
        of_head = [entry for entry in tensors if not entry.name.startswith("layers.")]

        def load(start: int, end: int, entries: Sequence[TensorEntry]) -> Stage:
            plan = _plan(start, end, head=not end)
            return Stage(model, plan, entries, device=device, dtype=dtype, weights=weights, loading=Loading(progress))

        self._body = load(layer, layer + 1, of_layer)
        self._head = load(0, 0, of_head) if of_head else None
        self._copies: list[DecoderLayer] = list(self._body.layers)

    @property
    def layer_bytes(self) -> int:
        """Resident bytes of one copy."""
        return self._copies[0].num_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in one layer."""
        model = self._body.model
        return 2 * model.num_kv_heads * model.head_dim * self._body.dtype.itemsize

    def stage(self, num_layers: int, *, head: bool = False) -> Stage:
        """A stage of so many copies. Stages share their copies, but not their caches."""
        while len(self._copies) < num_layers:
            self._copies.append(deepcopy(self._copies[0]))
        whole = self._head if head else self._body
        assert whole is not None, "the samples were made without a head"
        return whole.with_layers(self._copies[:num_layers])


def cut_head(tensors: Sequence[TensorEntry], dtype: ComputeDType, max_bytes: int) -> tuple[list[TensorEntry], float]:
    """Let the vocabulary be no larger than fits `max_bytes` once loaded; also return by how much it was larger.

    Each row costs the same, so what a smaller one takes says what the whole one does.
    """
    entries, factor = list(tensors), 1.0
    for index, entry in enumerate(entries):
        if entry.name == "lm_head":
            rows, columns = entry.shape
            is_quantised = dtype == "bfloat16" and entry.storage not in _PLAIN
            value_bytes = _QUANTISED_VALUE_BYTES if is_quantised else TORCH_DTYPES[dtype].itemsize
            fitting = int(max_bytes / (columns * value_bytes)) // _ROW_MULTIPLE * _ROW_MULTIPLE
            kept = min(rows, max(_ROW_MULTIPLE, fitting))
            entries[index] = replace(entry, shape=(kept, columns), num_bytes=entry.num_bytes // rows * kept)
            factor = rows / kept
    return entries, factor


def _plan(start: int, end: int, *, head: bool) -> StagePlan:
    return StagePlan(
        worker="sample",
        start=start,
        end=end,
        embedding=False,
        head=head,
        weight_bytes=0,
        kv_bytes=0,
        predicted_compute_s=0.0,
    )
