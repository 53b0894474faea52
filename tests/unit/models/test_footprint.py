"""What tensors become in memory."""

from __future__ import annotations

import pytest

from butterfly.models import open_model, resident_bytes
from butterfly.models.footprint import INT4_PLANES
from butterfly.models.storage import BLOCKS
from butterfly.specs import ComputeDType, Storage, TensorEntry


def entry(storage: Storage, *shape: int) -> TensorEntry:
    return TensorEntry(name="x", storage=storage, shape=shape, num_bytes=0)


@pytest.mark.parametrize(
    ("storage", "dtype", "expected"),
    [
        ("Q4_0", "bfloat16", 128 * 256 // 2 + 8 * 128 * 4),
        ("Q4_1", "bfloat16", 128 * 256 // 2 + 8 * 128 * 4),
        ("Q4_K", "bfloat16", 128 * 256 // 2 + 8 * 128 * 4),
        ("Q5_0", "bfloat16", 2 * (128 * 256 // 2 + 8 * 128 * 4)),
        ("Q5_K", "bfloat16", 2 * (128 * 256 // 2 + 8 * 128 * 4)),
        ("Q6_K", "bfloat16", 2 * (128 * 256 // 2 + 8 * 128 * 4)),
        ("Q8_0", "bfloat16", 2 * (128 * 256 // 2 + 8 * 128 * 4)),
        ("BF16", "bfloat16", 100 * 256 * 2),
        ("F32", "bfloat16", 100 * 256 * 2),
        ("Q4_0", "float32", 100 * 256 * 4),
        ("F16", "float16", 100 * 256 * 2),
    ],
)
def test_a_matrix_of_100_rows_of_256(storage: Storage, dtype: ComputeDType, expected: int) -> None:
    assert resident_bytes(entry(storage, 100, 256), dtype) == expected


def test_vectors_are_float32_in_any_mode() -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        assert resident_bytes(entry("F16", 48), dtype) == 192


def test_every_storage_is_in_the_table_or_is_a_float() -> None:
    assert INT4_PLANES.keys() | {"F32", "F16", "BF16"} == BLOCKS.keys()


def test_the_footprint_of_a_small_model_by_hand() -> None:
    model = open_model("random:llama,hidden=64,layers=2,heads=4,kv_heads=2,ffn=96,vocab=256,context=50,bits=16")
    attention = 64 * 64 * 2 + 2 * 32 * 64
    layer = 2 * (attention + 3 * 64 * 96) + 2 * 4 * 64
    assert model.footprint.layer_weight_bytes == (layer, layer)
    assert model.footprint.head_bytes == 2 * 256 * 64 + 4 * 64
    assert model.footprint.embedding_bytes == 2 * 256 * 64  # generated: there is no file to map
    assert model.footprint.kv_bytes_per_token == (2 * 2 * 16 * 2,) * 2
    assert (model.footprint.max_context, model.footprint.hidden_bytes_per_token) == (50, 128)


def test_float32_doubles_cache_and_hidden_state() -> None:
    half, single = open_model("random:llama"), open_model("random:llama", dtype="float32")
    assert single.footprint.hidden_bytes_per_token == 2 * half.footprint.hidden_bytes_per_token
    assert single.footprint.kv_bytes_per_token[0] == 2 * half.footprint.kv_bytes_per_token[0]


def test_a_tied_head_is_counted_and_a_mapped_embedding_is_not() -> None:
    model = open_model("smollm2")
    assert model.footprint.embedding_bytes == 0
    assert model.footprint.head_bytes == 2 * (49152 * 576 // 2 + 18 * 49152 * 4) + 4 * 576
