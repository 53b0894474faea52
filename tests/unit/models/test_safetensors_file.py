"""The safetensors header reader against the `safetensors` package, and against damaged files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.safetensors_file import read_safetensors, read_safetensors_folder
from tests.unit.models.samples import write_safetensors


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.arange(4, dtype=torch.bfloat16),
        "c": torch.arange(8, dtype=torch.float16).reshape(2, 2, 2),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    stored = read_safetensors(tmp_path / "m.safetensors")
    assert {name: entry.storage for name, entry in stored.items()} == {"a": "F32", "b": "BF16", "c": "F16"}
    for name, tensor in tensors.items():
        entry = stored[name]
        assert entry.shape == tuple(tensor.shape)
        read = torch.frombuffer(bytearray(raw[entry.offset : entry.offset + entry.num_bytes]), dtype=tensor.dtype)
        assert torch.equal(read.reshape(tensor.shape), tensor)


def test_shards_are_put_together(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": ("F32", [1], bytes(4))})
    write_safetensors(tmp_path / "two.safetensors", {"b": ("F16", [2], bytes(4))})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    stored = read_safetensors_folder(tmp_path)
    assert stored["a"].file.endswith("one.safetensors")
    assert stored["b"].file.endswith("two.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../one.safetensors"}}, "not a plain file name"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors: cannot be read: No such file"),
        ({"weight_map": {"b": "one.safetensors"}}, "tensor b is in the index but in no shard"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_wrong_indexes(tmp_path: Path, index: object, message: str) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": ("F32", [1], bytes(4))})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFormatError, match=message):
        read_safetensors_folder(tmp_path)


def framed(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a safetensors file"),
        (b"GGUF", "not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + bytes(100), "truncated in its header"),
        (framed("[1, 2]"), "not a safetensors file"),
        (framed("{oops}"), "not a safetensors file"),
        (framed('{"a": {"dtype": "F32"}}'), "not a safetensors file"),
        (framed('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(7)), "truncated: tensor a"),
        (framed('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}}', bytes(8)), "claims the range 0 to 7"),
        (framed('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', bytes(8)), "claims the range -8"),
        (framed('{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'), "has the shape"),
    ],
)
def test_foreign_and_lying_files(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(ModelFormatError, match=message):
        read_safetensors(tmp_path / "m.safetensors")


def test_an_unsupported_type_is_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {"w": ("F8_E4M3", [4], bytes(4))})
    with pytest.raises(UnsupportedModelError, match="tensor w has the type F8_E4M3; supported: F32, F16, BF16"):
        read_safetensors(tmp_path / "m.safetensors")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"neither model\.safetensors nor"):
        read_safetensors_folder(tmp_path)
