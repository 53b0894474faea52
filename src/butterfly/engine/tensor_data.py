"""The stored bytes of a tensor: mapped from its file, or generated for `random:` models.

Files are mapped, never read whole; pages that were converted are handed back to the system, so a stage's
resident memory is what it materialised.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from butterfly.engine.quantization import Bytes
from butterfly.errors import ModelFormatError, ModelNotFoundError
from butterfly.specs import TensorEntry

_CHUNK_BYTES = 1 << 20  # stored; unpacking it takes some twenty times as much for a moment
_GENERATED_ROWS = 256  # rows that come from one random stream: the granule of reproducibility


class TensorFiles:
    """Open mappings of model files, by path. A mapping closes with the last array that views it."""

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}

    def rows(self, entry: TensorEntry, start: int = 0, end: int | None = None) -> Bytes:
        """Return rows [start, end) as stored, uint8 [rows, bytes per row]. A vector is one row."""
        num_rows, row_bytes = row_layout(entry)
        end = num_rows if end is None else end
        if not entry.file:
            return _generate(entry, start, end)
        return self._view(entry).reshape(num_rows, row_bytes)[start:end]

    def chunks(self, entry: TensorEntry, row_multiple: int) -> Iterator[tuple[int, Bytes]]:
        """Yield (first row, rows) pieces of about 1 MiB, in multiples of `row_multiple` rows."""
        num_rows, row_bytes = row_layout(entry)
        step = max(row_multiple, _CHUNK_BYTES // row_bytes // row_multiple * row_multiple)
        for start in range(0, num_rows, step):
            yield start, self.rows(entry, start, min(start + step, num_rows))
        self.forget(entry)

    def forget(self, entry: TensorEntry) -> None:
        """Let the system drop the pages of this tensor from our memory; a later read maps them again."""
        if entry.file in self._maps:
            page = mmap.PAGESIZE
            start = entry.offset // page * page
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, start, entry.offset + entry.num_bytes - start)

    def _view(self, entry: TensorEntry) -> Bytes:
        if entry.file not in self._maps:
            self._maps[entry.file] = _map_file(entry.file)
        mapped = self._maps[entry.file]
        if entry.offset + entry.num_bytes > len(mapped):
            raise ModelFormatError(f"{entry.file} ends before tensor {entry.name}: is it truncated?")
        return np.frombuffer(mapped, np.uint8, entry.num_bytes, entry.offset)


def row_layout(entry: TensorEntry) -> tuple[int, int]:
    """Return (rows, bytes per row); a vector counts as one row."""
    num_rows = entry.shape[0] if len(entry.shape) > 1 else 1
    return num_rows, entry.num_bytes // num_rows


def _map_file(path: str) -> mmap.mmap:
    try:
        with Path(path).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"no model file at {path} on this machine") from error
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"cannot read {path}: {error}") from error


def _generate(entry: TensorEntry, start: int, end: int) -> Bytes:
    """Rows of a reproducible random tensor: the same bytes whatever range is asked for."""
    first = start // _GENERATED_ROWS
    last = (end - 1) // _GENERATED_ROWS
    pieces = [_generate_granule(entry, granule) for granule in range(first, last + 1)]
    offset = first * _GENERATED_ROWS
    return np.concatenate(pieces)[start - offset : end - offset]


def _generate_granule(entry: TensorEntry, granule: int) -> Bytes:
    num_rows, row_bytes = row_layout(entry)
    rows = min(_GENERATED_ROWS, num_rows - granule * _GENERATED_ROWS)
    rng = np.random.Generator(np.random.Philox(key=[entry.seed, granule]))
    if len(entry.shape) == 1:
        return _as_stored(entry, np.full((1, entry.shape[0]), 1.0 if "norm" in entry.name else 0.0, np.float32))
    spread = entry.shape[1] ** -0.5  # keeps activations near one whatever the width
    if entry.storage == "Q4_0":
        return _random_blocks(rng, rows, row_bytes, block_bytes=18, scale=spread / 4.6)
    if entry.storage == "Q8_0":
        return _random_blocks(rng, rows, row_bytes, block_bytes=34, scale=spread / 74)
    return _as_stored(entry, rng.standard_normal((rows, entry.shape[1]), np.float32) * np.float32(spread))


def _random_blocks(rng: np.random.Generator, rows: int, row_bytes: int, *, block_bytes: int, scale: float) -> Bytes:
    """Blocks of a float16 scale followed by uniformly random integers."""
    blocks = rng.integers(0, 256, (rows, row_bytes // block_bytes, block_bytes), np.uint8)
    blocks[..., :2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, row_bytes)


def _as_stored(entry: TensorEntry, values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Bytes:
    if entry.storage == "F32":
        return values.view(np.uint8)
    if entry.storage == "F16":
        return values.astype(np.float16).view(np.uint8)
    if entry.storage == "BF16":
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    raise ModelFormatError(f"cannot generate random values stored as {entry.storage}")
