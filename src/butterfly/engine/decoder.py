"""One decoder layer, for every family: what differs is data (specs.ModelSpec and specs.LayerSpec).

Tokens of all sequences in a step are one ragged batch [M, hidden]; only attention looks at sequences one by one.
Legend: M tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from butterfly.engine.activation import activate
from butterfly.engine.attention import attend
from butterfly.engine.decode_attention import DecodeGroup
from butterfly.engine.kv_cache import Slab
from butterfly.engine.linear import LinearLoader
from butterfly.engine.rope import Rope
from butterfly.specs import ModelSpec, TensorEntry

_MLP_ROWS = 128  # 64 to 256 are about as fast


class SequenceRows(NamedTuple):
    """Rows [first, first + num_tokens) of the batch are positions [start, ...) of the sequence in `slab`."""

    first: int
    num_tokens: int
    start: int
    slab: Slab


class Batch(NamedTuple):
    """What all layers of a stage share in one step."""

    sequences: Sequence[SequenceRows]  # those that are looked at one by one
    groups: Sequence[DecodeGroup]  # and those that are not
    num_prompt: int  # the first rows are tokens of prompts, all others are generated
    angles: Sequence[tuple[torch.Tensor, torch.Tensor]]  # cos and sin for each of ModelSpec.ropes


class RMSNorm:
    """x / rms(x) * weight, computed and returned in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps
        self._mean = 1 / len(weight)
        self.num_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse: torch.Tensor = norm.mul_(norm).mul_(self._mean).add_(self._eps).rsqrt_()
        return x * inverse * self._weight


class DecoderLayer:
    """Attention and MLP of layer `index` (its number in the full model)."""

    def __init__(
        self,
        model: ModelSpec,
        index: int,
        ropes: Sequence[Rope],
        tensors: Mapping[str, TensorEntry],
        loader: LinearLoader,
    ) -> None:
        def entries(*names: str) -> list[TensorEntry]:
            return [tensors[f"layers.{index}.{name}"] for name in names if f"layers.{index}.{name}" in tensors]

        def norm(name: str) -> RMSNorm:
            return RMSNorm(loader.vector(tensors[f"layers.{index}.{name}"]), model.norm_eps)

        self._model, self._layer = model, model.layers[index]
        self._rope = ropes[self._layer.rope]
        self._qkv = loader.load(entries("q", "k", "v"), entries("q_bias", "k_bias", "v_bias"))
        self._output = loader.load(entries("o"))
        self._gate_up = loader.load(entries("gate", "up"))
        self._down = loader.load(entries("down"))
        self._attn_norm, self._ffn_norm = norm("attn_norm"), norm("ffn_norm")
        self._q_norm = norm("q_norm") if model.qk_norm else None
        self._k_norm = norm("k_norm") if model.qk_norm else None
        self._post_attn_norm = norm("post_attn_norm") if model.post_norms else None
        self._post_ffn_norm = norm("post_ffn_norm") if model.post_norms else None

    @property
    def window(self) -> int | None:
        return self._layer.window

    @property
    def num_bytes(self) -> int:
        """Resident bytes of this layer's weights."""
        parts = (
            *(self._qkv, self._output, self._gate_up, self._down, self._attn_norm, self._ffn_norm),
            *(self._q_norm, self._k_norm, self._post_attn_norm, self._post_ffn_norm),
        )
        return sum(part.num_bytes for part in parts if part is not None)

    def __call__(self, x: torch.Tensor, batch: Batch, slot: int) -> torch.Tensor:
        """Return hidden states [M, hidden]; `slot` is this layer's place in the stage's slabs.

        The residual stream is float32 within the layer and x's dtype between layers, wherever a stage ends.
        """
        residual = x.float()
        attended = self._attention(self._attn_norm(residual), batch, slot, x.dtype)
        residual = residual + (self._post_attn_norm(attended) if self._post_attn_norm else attended)
        expanded = self._mlp(residual, batch.num_prompt)
        return (residual + (self._post_ffn_norm(expanded) if self._post_ffn_norm else expanded)).to(x.dtype)

    def _mlp(self, residual: torch.Tensor, num_prompt: int) -> torch.Tensor:
        """Norm and MLP, some rows at a time: what is between the products stays in the processor's cache."""
        tiles = []
        for first in range(0, len(residual), _MLP_ROWS):
            rows = residual[first : first + _MLP_ROWS]
            prompt_rows = min(max(0, num_prompt - first), len(rows))
            # float32 whatever the matrices gave: what is beside a row in its tile must not decide about its rounding
            gate, up = self._gate_up(self._ffn_norm(rows), prompt_rows).float().chunk(2, dim=-1)
            tiles.append(self._down(activate(self._model.activation, gate) * up, prompt_rows))
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles)

    def _attention(self, x: torch.Tensor, batch: Batch, slot: int, dtype: torch.dtype) -> torch.Tensor:
        q_MHD, k_MKD, v_MKD = self._project(x, batch, dtype)
        return self._output(self._mix(q_MHD, k_MKD, v_MKD, batch, slot), batch.num_prompt)

    def _mix(
        self, q_MHD: torch.Tensor, k_MKD: torch.Tensor, v_MKD: torch.Tensor, batch: Batch, slot: int
    ) -> torch.Tensor:
        """Write keys and values to the slabs, and return the values that each row attends to, [M, H * D]."""
        window = self._layer.window
        if not batch.sequences and batch.groups[0].is_whole_batch_of == len(q_MHD):
            return batch.groups[0].attend(slot, q_MHD, k_MKD, v_MKD, window)
        mixed = q_MHD.new_empty(len(q_MHD), q_MHD[0].numel())
        for group in batch.groups:
            mixed[group.rows] = group.attend(slot, q_MHD[group.rows], k_MKD[group.rows], v_MKD[group.rows], window)
        for first, num_tokens, start, slab in batch.sequences:
            rows = slice(first, first + num_tokens)
            slab.write(slot, start, k_MKD[rows], v_MKD[rows])
            mixed[rows] = attend(q_MHD[rows], slab.keys[slot], slab.values[slot], start, window)
        return mixed

    def _project(
        self, x: torch.Tensor, batch: Batch, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (rotated, scaled), keys (rotated) and values of all rows, in the dtype of the cache."""
        model = self._model
        qkv = self._qkv(x, batch.num_prompt).reshape(len(x), model.num_heads + 2 * model.num_kv_heads, model.head_dim)
        qk, v_MKD = torch.split(qkv, [model.num_heads + model.num_kv_heads, model.num_kv_heads], dim=1)
        if self._q_norm and self._k_norm:
            q_MHD, k_MKD = torch.split(qk, [model.num_heads, model.num_kv_heads], dim=1)
            qk = torch.cat([self._q_norm(q_MHD), self._k_norm(k_MKD)], dim=1)
        rotated = self._rope.rotate(qk, *batch.angles[self._layer.rope])
        q_MHD, k_MKD = torch.split(rotated, [model.num_heads, model.num_kv_heads], dim=1)
        return (q_MHD * model.attention_scale).to(dtype), k_MKD.to(dtype), v_MKD.to(dtype)
