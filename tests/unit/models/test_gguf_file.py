"""The GGUF header reader against the `gguf` package, and against damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.gguf_file import read_gguf
from tests.unit.models.samples import llama_metadata, llama_tensors, tiny_llama, write_gguf


def header(num_tensors: int, num_keys: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + body


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def test_reads_what_the_reference_reader_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "a": rng.random((3, 64), np.float32),
        "b": rng.random((2, 256), np.float32),
        "c": rng.random(5, np.float32).astype(np.float16),
    }
    metadata = {"k.int": 7, "k.float": 0.5, "k.text": "é", "k.flag": True, "k.list": [1, 2, 3], "k.words": ["x", ""]}
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors, quantized={"b": gguf.GGMLQuantizationType.Q8_0})
    file, reference = read_gguf(path), gguf.GGUFReader(str(path))
    for tensor in reference.tensors:
        ours = file.tensors[tensor.name]
        assert ours.storage == tensor.tensor_type.name
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert (ours.offset, ours.num_bytes) == (tensor.data_offset, tensor.n_bytes)
    assert file.integer("k.int") == 7
    assert file.number("k.float") == 0.5
    assert file.text("k.text") == "é"
    assert file.flag("k.flag", False) is True
    assert file.numbers("k.list").tolist() == [1, 2, 3]
    assert file.strings("k.words") == ["x", ""]
    assert file.text("general.architecture") == "llama"


def test_every_block_size_agrees_with_the_reference() -> None:
    from butterfly.models.gguf_file import GGML_STORAGES
    from butterfly.models.storage import BLOCKS

    for number, storage in GGML_STORAGES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == storage
        assert BLOCKS[storage] == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("kept", [0, 3, 4, 12, 23, 24, 30, 100, 500, 2000, 4000])
def test_every_truncation_of_the_header_is_a_format_error(tmp_path: Path, kept: int) -> None:
    whole = tiny_llama(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:kept])
    with pytest.raises(ModelFormatError, match=r"cut\.gguf") as caught:
        read_gguf(tmp_path / "cut.gguf")
    assert "\n" not in str(caught.value)


def test_missing_last_byte_of_the_data_names_the_tensor(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"a": np.zeros(32, np.float32), "z": np.zeros(64, np.float32)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError, match="truncated: tensor z"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 something else entirely", "not a GGUF file"),
        (header(0, 0, version=1), "version 1"),
        (header(0, 0, version=0x03000000), "version 50331648"),
        (header(1 << 60, 0), "claims 1152921504606846976 tensors"),
        (header(0, 1 << 40), "claims 1099511627776 metadata keys"),
        (header(0, 1, struct.pack("<Q", 1 << 62)), "truncated or damaged"),
        (header(0, 1, text("k") + struct.pack("<I", 99)), "unknown type 99"),
        (header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1)), "array of the unknown type 9"),
        (header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 1 << 23)), "truncated in an array"),
        (header(0, 1, text("k") + struct.pack("<IIQ", 9, 4, 1 << 23)), "truncated or damaged"),
        (header(1, 0, text("t") + struct.pack("<I", 9)), "claims 9 dimensions"),
        (header(1, 0, text("t") + struct.pack("<IQIQ", 1, 0, 0, 0)), "has the shape"),
        (header(1, 0, text("t") + struct.pack("<IQIQ", 1, 33, 2, 0)), "no whole Q4_0 blocks"),
        (header(1, 0, text("t") + struct.pack("<IQIQ", 1, 1 << 60, 0, 0)), "truncated: tensor t"),
        (header(1, 0, text("t") + struct.pack("<IQIQ", 1, 1, 0, 1 << 50)), "truncated: tensor t"),
    ],
)
def test_foreign_and_lying_headers(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(ModelFormatError, match=message):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(("number", "name"), [(10, "Q2_K"), (39, "MXFP4"), (77, "number 77")])
def test_an_unsupported_tensor_type_is_named_with_those_that_are(tmp_path: Path, number: int, name: str) -> None:
    body = text("blk.0.x") + struct.pack("<IQIQ", 1, 256, number, 0)
    (tmp_path / "m.gguf").write_bytes(header(1, 0, body) + bytes(4096))
    with pytest.raises(UnsupportedModelError, match=rf"blk\.0\.x has the type {name}; supported: F32.*Q6_K"):
        read_gguf(tmp_path / "m.gguf")


def test_a_part_of_a_split_file_says_how_to_merge(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"split.count": 3}, {"a": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match="gguf-split --merge"):
        read_gguf(path)


def test_values_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = read_gguf(write_gguf(tmp_path / "m.gguf", {"n": 1, "t": "x"}, {"a": np.zeros(4, np.float32)}))
    with pytest.raises(ModelFormatError, match="n is not a string"):
        file.text("n")
    with pytest.raises(ModelFormatError, match="t is not an integer"):
        file.integer("t")
    with pytest.raises(ModelFormatError, match="t is not a number"):
        file.number("t")
    with pytest.raises(ModelFormatError, match="n is not a boolean"):
        file.flag("n", True)
    with pytest.raises(ModelFormatError, match="lacks absent"):
        file.integer("absent")


def test_a_big_vocabulary_is_read_without_an_object_per_number(tmp_path: Path) -> None:
    metadata = {**llama_metadata(), "tokenizer.ggml.scores": np.zeros(1000, np.float32)}
    file = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, llama_tensors()))
    assert file.numbers("tokenizer.ggml.scores").dtype == np.float32
