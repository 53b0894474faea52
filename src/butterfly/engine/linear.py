"""Matrix products with stored weights: y[M, N] = x[M, K] @ w[N, K]^T (+ bias[N]).

A linear takes float32 rows, or rows in the compute dtype, and brings them to what its kernel wants.

The CPU kernels used here give a row of x the same bits whatever the other rows are; a property test guards each
(tests/property/test_kernels.py). Three things make that so: the packed 4-bit kernel sums each row by itself, 8-bit
integers add up to the same in any order, and the bf16 GEMM is never called with one row, for which oneDNN may choose
a kernel that sums in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from butterfly.engine.int8_linear import Int8Linear
from butterfly.engine.quantization import EIGHT_BIT, FOUR_BIT, GROUP, Bytes, Grouped, dequantize, unpack
from butterfly.engine.tensor_data import TensorFiles
from butterfly.errors import ModelFormatError
from butterfly.specs import TensorEntry, WeightFormat

_Form = Literal["dense", "int4", "two int4 halves", "int8"]
_ROW_BLOCK = 64  # the packed kernel works on blocks of 64 output rows


class Linear(Protocol):
    """A weight matrix in the form that its device multiplies fastest."""

    num_bytes: int

    def __call__(self, x_MK: torch.Tensor) -> torch.Tensor: ...


class RoleLinear(NamedTuple):
    """A matrix for the tokens of prompts and one for generated tokens: the same one, but for mixed weights."""

    prompt: Linear
    generated: Linear

    @property
    def num_bytes(self) -> int:
        return self.prompt.num_bytes + (self.generated.num_bytes if self.generated is not self.prompt else 0)

    def __call__(self, x_MK: torch.Tensor, num_prompt: int) -> torch.Tensor:
        """The first `num_prompt` rows are tokens of prompts."""
        if num_prompt == 0 or self.prompt is self.generated:
            return self.generated(x_MK)
        if num_prompt == len(x_MK):
            return self.prompt(x_MK)
        parts = self.prompt(x_MK[:num_prompt]), self.generated(x_MK[num_prompt:])
        return torch.cat([part.float() for part in parts])


class DenseLinear:
    """Weights in the compute dtype."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        self._weight, self._bias = weight_NK, bias_N
        self._pad_single_row = weight_NK.device.type == "cpu"
        self.num_bytes = weight_NK.nbytes + (bias_N.nbytes if bias_N is not None else 0)

    def __call__(self, x_MK: torch.Tensor) -> torch.Tensor:
        x_MK = x_MK.to(self._weight.dtype)
        if self._pad_single_row and len(x_MK) == 1:
            return F.linear(x_MK.expand(2, -1).contiguous(), self._weight, self._bias)[:1]
        return F.linear(x_MK, self._weight, self._bias)


class PackedLinear:
    """Weights as one (4-bit) or two (8-bit: high and low nibble) packed int4 matrices in bf16 groups of 32.

    Two nibbles, since stock PyTorch has no 8-bit CPU product with group scales, and a bf16 copy would double
    the memory: w = 16 s h + (s l + z), with q = 16 h + l.
    """

    def __init__(self, num_rows: int, in_features: int, parts: int, sum_dtype: torch.dtype = torch.bfloat16) -> None:
        """`sum_dtype` is that of the output of two parts: each is rounded to bf16 by the kernel, their sum need not."""
        padded = -(-num_rows // _ROW_BLOCK) * _ROW_BLOCK
        self._sum_dtype = sum_dtype
        self._num_rows, self._padded_rows = num_rows, padded
        self._packed = [torch.zeros(padded, in_features // 2, dtype=torch.uint8) for _ in range(parts)]
        self._scales = [torch.zeros(in_features // GROUP, padded, 2, dtype=torch.bfloat16) for _ in range(parts)]
        self._bias: torch.Tensor | None = None
        self.num_bytes = sum(t.nbytes for t in (*self._packed, *self._scales))

    def __call__(self, x_MK: torch.Tensor) -> torch.Tensor:
        x_MK = x_MK.to(torch.bfloat16)
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        y_MN: torch.Tensor = multiply(x_MK, self._packed[0], GROUP, self._scales[0])
        if len(self._packed) == 2:
            y_MN = y_MN.to(self._sum_dtype) + multiply(x_MK, self._packed[1], GROUP, self._scales[1])
        if self._bias is not None:
            y_MN = y_MN + self._bias
        return y_MN if self._num_rows == self._padded_rows else y_MN[:, : self._num_rows]

    def set_bias(self, bias_N: torch.Tensor) -> None:
        self._bias = F.pad(bias_N, (0, self._padded_rows - self._num_rows))
        self.num_bytes += self._bias.nbytes

    def fill(self, first_row: int, rows: Grouped) -> None:
        """Set output rows from `first_row` on; it must be a multiple of 64, and so must the number of rows
        unless they are the last."""
        if len(self._packed) == 1:
            self._fill_part(0, first_row, rows.q, rows.scale, rows.zero + 8 * rows.scale)
            return
        high = rows.q >> 4
        self._fill_part(0, first_row, high + 8, 16 * rows.scale, np.zeros_like(rows.zero))
        self._fill_part(1, first_row, rows.q - (high << 4), rows.scale, rows.zero + 8 * rows.scale)

    def _fill_part(
        self,
        part: int,
        first_row: int,
        q: np.ndarray[tuple[int, ...], np.dtype[np.int16]],
        scale: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
        zero: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    ) -> None:
        """The kernel's own convention is w = (q - 8) * scale + zero with q in [0, 16)."""
        num_rows = len(q)
        padded = -(-num_rows // _ROW_BLOCK) * _ROW_BLOCK
        q_NK = torch.from_numpy(q).to(torch.int32)
        if padded > num_rows:  # padding by nothing copies too: a sixth of the time of a load
            q_NK = F.pad(q_NK, (0, 0, 0, padded - num_rows))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NK, 1)
        self._packed[part][first_row : first_row + padded] = packed
        scales_GN2 = torch.from_numpy(np.stack([scale.T, zero.T], axis=-1))
        self._scales[part][:, first_row : first_row + num_rows] = scales_GN2.to(torch.bfloat16)


class SplitLinear:
    """Several matrices over the same input, their outputs side by side (forms that cannot be fused)."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = parts
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __call__(self, x_MK: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x_MK) for part in self._parts], dim=-1)


class LinearLoader:
    """Builds linears from stored tensors for one device and compute dtype; `weights`: of the quantised ones."""

    def __init__(
        self, files: TensorFiles, device: torch.device, dtype: torch.dtype, weights: WeightFormat = "int4"
    ) -> None:
        self._files, self._device, self._dtype, self._weights = files, device, dtype, weights

    def load_head(self, entry: TensorEntry) -> Linear:
        """Return the vocabulary matrix as a linear whose output is as fine as costs nothing: at times float32.

        Around 20 neighbouring bf16 numbers are 1/8 apart, and rounding decides near ties. Two rounded parts that are
        added in float32 leave one tie where there were ten. (The packed kernel has no fast path for float32 inputs.)
        """
        weights: WeightFormat = "int4" if self._weights == "mixed" else self._weights
        if self._form(entry, weights) == "two int4 halves":
            return self._packed([entry], None, torch.float32)
        return self._load([entry], (), weights)

    def load(self, entries: Sequence[TensorEntry], biases: Sequence[TensorEntry] = ()) -> RoleLinear:
        """Return one linear for either role of a token, whose output is that of all `entries`, in order."""
        if self._weights == "mixed" and any(self._form(entry, "int4") != "dense" for entry in entries):
            return RoleLinear(self._load(entries, biases, "int8"), self._load(entries, biases, "int4"))
        linear = self._load(entries, biases, "int4" if self._weights == "mixed" else self._weights)
        return RoleLinear(linear, linear)

    def _load(self, entries: Sequence[TensorEntry], biases: Sequence[TensorEntry], weights: WeightFormat) -> Linear:
        """Return one linear whose output is that of all `entries`, in order.

        Matrices of one form are fused: a row of the product does not depend on its neighbours.
        """
        if biases and len(biases) != len(entries):
            raise ModelFormatError(f"{entries[0].name}: {len(biases)} biases for {len(entries)} matrices")
        forms = {self._form(entry, weights) for entry in entries}
        blocked = all(entry.shape[0] % _ROW_BLOCK == 0 for entry in entries[:-1])
        fusable = len(forms) == 1 and (blocked or "int8" in forms or "dense" in forms)
        if not fusable:
            split = [[entry] for entry in entries]
            paired = [[bias] for bias in biases] if biases else [[] for _ in entries]
            return SplitLinear([self._load(e, b, weights) for e, b in zip(split, paired, strict=True)])
        bias = torch.cat([self.vector(b) for b in biases]) if biases else None
        if forms == {"int8"}:
            return self._int8(entries, bias)
        bias = None if bias is None else bias.to(self._dtype)
        if forms == {"dense"}:
            return DenseLinear(self._dense(entries), bias)
        return self._packed(entries, bias)

    def vector(self, entry: TensorEntry) -> torch.Tensor:
        """Return a norm weight or bias as float32 [N]."""
        values = dequantize(entry.storage, self._files.rows(entry))[0] + np.float32(entry.add)
        self._files.forget(entry)
        return torch.from_numpy(values).to(self._device)

    def _form(self, entry: TensorEntry, weights: WeightFormat) -> _Form:
        """The integer kernels are for bf16 on a CPU."""
        is_quantised = entry.storage in FOUR_BIT or entry.storage in EIGHT_BIT
        if self._device.type != "cpu" or self._dtype != torch.bfloat16 or entry.shape[1] % GROUP or not is_quantised:
            return "dense"
        if weights == "int8":
            return "int8"
        return "int4" if entry.storage in FOUR_BIT else "two int4 halves"

    def _int8(self, entries: Sequence[TensorEntry], bias_N: torch.Tensor | None) -> Int8Linear:
        linear = Int8Linear(sum(entry.shape[0] for entry in entries), entries[0].shape[1])
        first_row = 0
        for entry in entries:
            for start, rows in self._files.chunks(entry, 1):
                linear.fill(first_row + start, _to_torch(entry, rows))
            first_row += entry.shape[0]
        linear.finish(bias_N)
        return linear

    def _dense(self, entries: Sequence[TensorEntry]) -> torch.Tensor:
        """The matrices below each other, filled in pieces: at no time is one in memory twice."""
        shape = (sum(entry.shape[0] for entry in entries), entries[0].shape[1])
        weight_NK = torch.empty(shape, dtype=self._dtype, device=self._device)
        first_row = 0
        for entry in entries:
            for start, rows in self._files.chunks(entry, 1):
                begin = first_row + start
                weight_NK[begin : begin + len(rows)] = _to_torch(entry, rows).to(self._device)
            first_row += entry.shape[0]
        return weight_NK

    def _packed(
        self, entries: Sequence[TensorEntry], bias: torch.Tensor | None, sum_dtype: torch.dtype = torch.bfloat16
    ) -> PackedLinear:
        num_rows = sum(entry.shape[0] for entry in entries)
        num_parts = 1 if entries[0].storage in FOUR_BIT else 2
        linear = PackedLinear(num_rows, entries[0].shape[1], num_parts, sum_dtype)
        first_row = 0
        for entry in entries:
            for start, rows in self._files.chunks(entry, _ROW_BLOCK):
                linear.fill(first_row + start, unpack(entry.storage, rows))
            first_row += entry.shape[0]
        if bias is not None:
            linear.set_bias(bias)
        return linear


def _to_torch(entry: TensorEntry, rows: Bytes) -> torch.Tensor:
    """Stored rows as a float tensor [N, K]; bfloat16 keeps its bits."""
    if entry.storage == "BF16" and not entry.add:
        return torch.from_numpy(rows.copy()).view(torch.bfloat16)
    return torch.from_numpy(dequantize(entry.storage, rows) + np.float32(entry.add))
