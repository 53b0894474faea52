"""From stored GGUF blocks to the two integer forms that the CPU kernel multiplies.

Every quantised tensor becomes `w = scale * q + zero` in groups of 32 along the input dimension:

| stored           | becomes                 | exact?                                        |
| ---------------- | ----------------------- | --------------------------------------------- |
| Q4_0, Q4_1, Q4_K | 4 bits, q in [0, 16)    | yes, but for rounding scale and zero to bf16  |
| Q5_0, Q5_K, Q8_0 | 8 bits, q in [-128, 128)| yes, with the same exception                  |
| Q6_K             | 8 bits                  | no: its groups of 16 are rescaled to groups   |
|                  |                         | of 32, within a quarter of a Q6_K step        |
| F16, BF16, F32   | the compute dtype       | rounded where that has fewer bits             |

The layouts are those of ggml (ggml-common.h describes the blocks). Arrays are numpy; K is the input dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from butterfly.specs import Storage

GROUP = 32
FOUR_BIT: frozenset[Storage] = frozenset({"Q4_0", "Q4_1", "Q4_K"})
EIGHT_BIT: frozenset[Storage] = frozenset({"Q5_0", "Q5_K", "Q6_K", "Q8_0"})

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Grouped(NamedTuple):
    """w[n, 32 g + j] = scale[n, g] * q[n, 32 g + j] + zero[n, g]."""

    q: npt.NDArray[np.int16]  # [N, K]
    scale: Floats  # [N, K / 32]
    zero: Floats  # [N, K / 32]


def dequantize(storage: Storage, rows: Bytes) -> Floats:
    """Return stored rows [N, bytes per row] as float32 [N, K]."""
    if storage == "BF16":
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if storage == "F16":
        return rows.view(np.float16).astype(np.float32)
    if storage == "F32":
        return rows.view(np.float32)
    values: Floats = quants.dequantize(rows, GGMLQuantizationType[storage])
    return values


def unpack(storage: Storage, rows: Bytes) -> Grouped:
    """Return stored rows [N, bytes per row] of a quantised type as integers with group scales."""
    return _UNPACKERS[storage](rows)


def _half(block: Bytes) -> Floats:
    """The two bytes at [..., 2] as one float32 [..., 1]."""
    return np.ascontiguousarray(block).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[..., 16] bytes to [..., 32] values: low nibbles first, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _flat(q: npt.NDArray[np.generic], num_rows: int) -> npt.NDArray[np.int16]:
    return q.reshape(num_rows, -1).astype(np.int16)


def _q4_0(rows: Bytes) -> Grouped:
    blocks = rows.reshape(len(rows), -1, 18)
    scale = _half(blocks[..., :2])[..., 0]
    return Grouped(_flat(_nibbles(blocks[..., 2:]), len(rows)), scale, -8 * scale)


def _q4_1(rows: Bytes) -> Grouped:
    blocks = rows.reshape(len(rows), -1, 20)
    scale, zero = _half(blocks[..., :2])[..., 0], _half(blocks[..., 2:4])[..., 0]
    return Grouped(_flat(_nibbles(blocks[..., 4:]), len(rows)), scale, zero)


def _k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """[..., 12] bytes to eight 6-bit scales and eight 6-bit minima, each [..., 8]."""
    low, mid, high = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    minimum = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=-1)
    return scale, minimum


def _k_header(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and zero [N, K / 32] of Q4_K and Q5_K blocks, whose first 16 bytes are alike."""
    scale6, minimum6 = _k_scales(blocks[..., 4:16])
    scale = _half(blocks[..., :2]) * scale6
    zero = -_half(blocks[..., 2:4]) * minimum6
    return scale.reshape(len(blocks), -1), zero.reshape(len(blocks), -1)


def _k_nibbles(packed: Bytes) -> Bytes:
    """[N, B, 128] bytes to [N, B, 8, 32]: each run of 32 bytes holds two groups, low then high."""
    runs = packed.reshape(*packed.shape[:2], 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=-2).reshape(*packed.shape[:2], 8, 32)


def _q4_k(rows: Bytes) -> Grouped:
    blocks = rows.reshape(len(rows), -1, 144)
    return Grouped(_flat(_k_nibbles(blocks[..., 16:]), len(rows)), *_k_header(blocks))


def _q5_k(rows: Bytes) -> Grouped:
    blocks = rows.reshape(len(rows), -1, 176)
    fifth = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = _k_nibbles(blocks[..., 48:]) | (fifth << 4)
    return Grouped(_flat(q, len(rows)), *_k_header(blocks))


def _q5_0(rows: Bytes) -> Grouped:
    blocks = rows.reshape(len(rows), -1, 22)
    scale = _half(blocks[..., :2])[..., 0]
    fifth = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little")
    q = (_nibbles(blocks[..., 6:]) | (fifth << 4)).astype(np.int16) - 16
    return Grouped(_flat(q, len(rows)), scale, np.zeros_like(scale))


def _q8_0(rows: Bytes) -> Grouped:
    blocks = rows.reshape(len(rows), -1, 34)
    scale = _half(blocks[..., :2])[..., 0]
    return Grouped(_flat(blocks[..., 2:].view(np.int8), len(rows)), scale, np.zeros_like(scale))


def _q6_k(rows: Bytes) -> Grouped:
    values = dequantize("Q6_K", rows).reshape(len(rows), -1, GROUP)
    scale = np.abs(values).max(axis=-1) / 127
    q = np.rint(values / np.where(scale > 0, scale, 1)[..., None])
    return Grouped(_flat(q, len(rows)), scale, np.zeros_like(scale))


_UNPACKERS = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q5_0": _q5_0,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q8_0": _q8_0,
}
