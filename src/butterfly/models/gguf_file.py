"""The header of a GGUF file: metadata and where each tensor lies. No weights are read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian.
The reader of the `gguf` package builds one Python object per array item (18 s for a vocabulary of
262,144); this one walks the mapped bytes once and keeps numeric arrays as numpy arrays.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.storage import StoredTensor, storage_bytes
from butterfly.specs import Storage

MAGIC = b"GGUF"

GGML_STORAGES: Mapping[int, Storage] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    8: "Q8_0",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    30: "BF16",
}
"""The numbers of ggml's tensor types that Butterfly runs."""

_OTHER_GGML_TYPES: Mapping[int, str] = {
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALAR_DTYPES: Mapping[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_MAX_ITEMS = 1 << 24  # no array or table of a real model comes near; beyond it a count is a lie
_MAX_DIMS = 4

Scalar = int | float | bool | str
Value = Scalar | list[str] | NDArray[np.generic]


@dataclass(frozen=True)
class GgufFile:
    """A parsed header."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]

    def text(self, key: str, default: str = "") -> str:
        """Return a string value. Raises ModelFormatError when it is of another kind."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self._wrong_kind(key, "a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer value. Raises ModelFormatError when absent without default, or of another kind."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong_kind(key, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number as float. Raises ModelFormatError when absent without default, or of another kind."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_kind(key, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean value. Raises ModelFormatError when it is of another kind."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong_kind(key, "a boolean")
        return value

    def strings(self, key: str) -> list[str]:
        """Return an array of strings, empty when absent. Raises ModelFormatError for another kind."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list):
            raise self._wrong_kind(key, "an array of strings")
        return value

    def numbers(self, key: str) -> NDArray[np.generic]:
        """Return a numeric array, empty when absent. Raises ModelFormatError for another kind."""
        value = self.metadata.get(key, np.empty(0, np.float32))
        if not isinstance(value, np.ndarray):
            raise self._wrong_kind(key, "an array of numbers")
        return value

    def read_f32(self, name: str) -> tuple[float, ...]:
        """Return the values of a small F32 tensor. Raises ModelFormatError when it is not one."""
        tensor = self.tensors[name]
        if tensor.storage != "F32":
            raise ModelFormatError(f"{self.path}: tensor {name} must be F32, not {tensor.storage}")
        values = np.fromfile(self.path, "<f4", prod(tensor.shape), offset=tensor.offset)
        return tuple(float(value) for value in values)

    def _required(self, key: str, default: float | None) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelFormatError(f"{self.path}: metadata lacks {key}")
        return value

    def _wrong_kind(self, key: str, wanted: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: metadata {key} is not {wanted}")


class _Cursor:
    """Walks mapped bytes; every read is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def take(self, num_bytes: int) -> int:
        """Return the current position and step over `num_bytes`."""
        start = self.position
        if num_bytes > self.size - start:
            raise ModelFormatError(
                f"{self.path}: the header is truncated or damaged: {num_bytes} bytes wanted at {start}, "
                f"the file has {self.size}"
            )
        self.position = start + num_bytes
        return start

    def u32(self) -> int:
        return int.from_bytes(self.data[self.take(4) : self.position], "little")

    def u64(self) -> int:
        return int.from_bytes(self.data[self.take(8) : self.position], "little")

    def count(self, what: str) -> int:
        number = self.u64()
        if number > _MAX_ITEMS:
            raise ModelFormatError(f"{self.path}: the header is damaged: it claims {number} {what}")
        return number

    def string(self) -> str:
        length = self.u64()
        raw = self.data[self.take(length) : self.position]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("utf-8", "replace")  # some published vocabularies hold broken UTF-8

    def strings(self, number: int) -> list[str]:
        """Return `number` strings. The loop is tight because vocabularies and merges are long."""
        data, position, size = self.data, self.position, self.size
        unpack_length = struct.Struct("<Q").unpack_from
        result: list[str] = []
        for _ in range(number):
            if position + 8 > size:
                break
            start = position + 8
            position = start + unpack_length(data, position)[0]
            if position > size:
                break
            result.append(data[start:position].decode("utf-8", "replace"))
        if len(result) != number:
            raise ModelFormatError(f"{self.path}: truncated in an array of {number} strings")
        self.position = position
        return result

    def scalars(self, kind: int, number: int) -> NDArray[np.generic]:
        dtype = np.dtype(_SCALAR_DTYPES[kind])
        start = self.take(dtype.itemsize * number)
        return np.frombuffer(self.data[start : self.position], dtype)

    def value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self.string()
        if kind in _SCALAR_DTYPES:
            item: Scalar = self.scalars(kind, 1)[0].item()
            return item
        if kind != _ARRAY:
            raise ModelFormatError(f"{self.path}: metadata {key} has the unknown type {kind}")
        item_kind, number = self.u32(), self.count(f"items in {key}")
        if item_kind == _STRING:
            return self.strings(number)
        if item_kind not in _SCALAR_DTYPES:
            raise ModelFormatError(f"{self.path}: metadata {key} is an array of the unknown type {item_kind}")
        return self.scalars(item_kind, number)


def read_gguf(path: Path) -> GgufFile:
    """Parse the header of the GGUF file at `path`.

    Raises ModelFormatError for a foreign, truncated or inconsistent file, UnsupportedModelError for a
    tensor type that Butterfly does not run.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ModelFormatError(f"{path}: not a GGUF file (it does not start with the letters GGUF)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(path, data))
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(cursor: _Cursor) -> GgufFile:
    cursor.take(len(MAGIC))
    version = cursor.u32()
    if version not in (2, 3):
        raise ModelFormatError(f"{cursor.path}: GGUF version {version} (or big endian); 2 and 3 can be read")
    num_tensors, num_keys = cursor.count("tensors"), cursor.count("metadata keys")
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.u32(), key)
    if metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedModelError(f"{cursor.path}: one part of a split GGUF; merge it with gguf-split --merge")
    rows = [_tensor_row(cursor) for _ in range(num_tensors)]
    return GgufFile(cursor.path, metadata, _place_tensors(cursor, metadata, rows))


def _tensor_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, num_dims = cursor.string(), cursor.u32()
    if not 1 <= num_dims <= _MAX_DIMS:
        raise ModelFormatError(f"{cursor.path}: tensor {name} claims {num_dims} dimensions")
    dims = [cursor.u64() for _ in range(num_dims)]
    return name, tuple(reversed(dims)), cursor.u32(), cursor.u64()


def _place_tensors(
    cursor: _Cursor, metadata: Mapping[str, Value], rows: list[tuple[str, tuple[int, ...], int, int]]
) -> dict[str, StoredTensor]:
    """Turn offsets within the data section into offsets within the file, and check that they fit."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ModelFormatError(f"{cursor.path}: general.alignment is {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, kind, relative in rows:
        storage = _storage(cursor.path, name, kind)
        num_bytes = storage_bytes(storage, shape, f"{cursor.path}: tensor {name}")
        offset = data_start + relative
        if offset + num_bytes > cursor.size:
            raise ModelFormatError(
                f"{cursor.path}: truncated: tensor {name} ends at byte {offset + num_bytes}, the file has {cursor.size}"
            )
        tensors[name] = StoredTensor(storage, shape, str(cursor.path), offset, num_bytes)
    return tensors


def _storage(path: Path, name: str, kind: int) -> Storage:
    try:
        return GGML_STORAGES[kind]
    except KeyError:
        raise UnsupportedModelError(
            f"{path}: tensor {name} has the type {_OTHER_GGML_TYPES.get(kind, f'number {kind}')}; "
            f"supported: {', '.join(GGML_STORAGES.values())}"
        ) from None
