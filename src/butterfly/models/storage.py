"""A tensor as its file stores it, and how many bytes that takes for every `Storage`.

Block formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from butterfly.errors import ModelFormatError
from butterfly.specs import Storage

BLOCKS: Mapping[Storage, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),  # scale, 32 nibbles
    "Q4_1": (32, 20),  # scale, minimum, 32 nibbles
    "Q5_0": (32, 22),  # scale, 32 high bits, 32 nibbles
    "Q8_0": (32, 34),  # scale, 32 bytes
    "Q4_K": (256, 144),  # two super-scales, 12 bytes of scales, 256 nibbles
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Values per block and bytes per block."""


def storage_bytes(storage: Storage, shape: Sequence[int], what: str = "tensor") -> int:
    """Return the bytes of a row-major tensor. Raises ModelFormatError when rows are no whole blocks."""
    values, num_bytes = BLOCKS[storage]
    if not shape or min(shape) < 1:
        raise ModelFormatError(f"{what} has the shape {list(shape)}")
    if shape[-1] % values:
        raise ModelFormatError(f"{what}: rows of {shape[-1]} values are no whole {storage} blocks of {values}")
    return prod(shape) // values * num_bytes


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies, whatever its name there. `shape` is row-major."""

    storage: Storage
    shape: tuple[int, ...]
    file: str
    offset: int  # from the start of the file
    num_bytes: int
