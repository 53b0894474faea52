"""The header of safetensors files: where each tensor lies. No weights are read.

Format: https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, raw data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.json_file import read_json_object
from butterfly.models.storage import StoredTensor, storage_bytes
from butterfly.specs import Storage

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_STORAGES: Mapping[str, Storage] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_safetensors_folder(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of `model.safetensors`, or of the shards that its index names.

    Raises ModelFormatError for a missing, foreign, truncated or inconsistent file,
    UnsupportedModelError for a data type other than F32, F16 and BF16.
    """
    if (folder / SINGLE_FILE).exists():
        return read_safetensors(folder / SINGLE_FILE)
    if not (folder / INDEX_FILE).exists():
        raise ModelFormatError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")
    weight_map = read_json_object(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelFormatError(f"{folder / INDEX_FILE}: no weight_map of tensor names to file names")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise ModelFormatError(f"{folder / INDEX_FILE}: {shard!r} is not a plain file name")
        tensors |= read_safetensors(folder / shard)
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ModelFormatError(f"{folder}: tensor {missing[0]} is in the index but in no shard")
    return tensors


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return every tensor of one file. Raises as `read_safetensors_folder`."""
    try:
        with path.open("rb") as file:
            file_size = path.stat().st_size
            header_size = int.from_bytes(file.read(8), "little")
            if file_size < 8 or not 2 <= header_size <= min(_MAX_HEADER_BYTES, file_size - 8):
                raise ModelFormatError(f"{path}: not a safetensors file, or truncated in its header")
            raw = file.read(header_size)
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = msgspec.json.decode(raw, type=dict[str, Any])
        header.pop("__metadata__", None)
        entries = msgspec.convert(header, dict[str, _Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFormatError(f"{path}: not a safetensors file: {error}") from error
    data_start = 8 + header_size
    return {name: _place(path, name, entry, data_start, file_size) for name, entry in entries.items()}


def _place(path: Path, name: str, entry: _Entry, data_start: int, file_size: int) -> StoredTensor:
    storage = _STORAGES.get(entry.dtype)
    if storage is None:
        raise UnsupportedModelError(
            f"{path}: tensor {name} has the type {entry.dtype}; supported: {', '.join(_STORAGES)}"
        )
    begin, end = entry.data_offsets
    num_bytes = storage_bytes(storage, entry.shape, f"{path}: tensor {name}")
    if begin < 0 or end - begin != num_bytes:
        raise ModelFormatError(f"{path}: tensor {name} of {num_bytes} bytes claims the range {begin} to {end}")
    if data_start + end > file_size:
        raise ModelFormatError(
            f"{path}: truncated: tensor {name} ends at byte {data_start + end}, the file has {file_size}"
        )
    return StoredTensor(storage, entry.shape, str(path), data_start + begin, num_bytes)
