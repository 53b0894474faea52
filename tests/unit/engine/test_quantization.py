"""Integer forms against the reference dequantisation of the gguf package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from butterfly.engine.linear import PackedLinear
from butterfly.engine.quantization import EIGHT_BIT, FOUR_BIT, Bytes, dequantize, unpack
from butterfly.specs import Storage

ROWS, COLUMNS = 128, 512
QUANTISED = sorted(FOUR_BIT | EIGHT_BIT)
HALF_FIELDS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_0": (0,),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
}


def random_rows(storage: Storage) -> Bytes:
    """Random blocks whose float16 fields are ordinary numbers."""
    rng = np.random.default_rng(1)
    block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[storage]]
    blocks = rng.integers(0, 256, (ROWS, COLUMNS // block_values, block_bytes), np.uint8)
    for offset in HALF_FIELDS[storage]:
        halves = rng.uniform(0.001, 0.02, blocks.shape[:2]).astype(np.float16)
        blocks[..., offset : offset + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(ROWS, -1)


@pytest.mark.parametrize("storage", QUANTISED)
def test_groups_mean_the_stored_values(storage: Storage) -> None:
    rows = random_rows(storage)
    expected = dequantize(storage, rows)
    grouped = unpack(storage, rows)
    scale = grouped.scale.repeat(32, axis=1)
    values = grouped.q * scale + grouped.zero.repeat(32, axis=1)
    low, high = (0, 15) if storage in FOUR_BIT else (-128, 127)
    assert low <= grouped.q.min()
    assert grouped.q.max() <= high
    # Q6_K moves from groups of 16 to groups of 32: half a step of the new scale. The others are exact.
    tolerance = scale / 2 * 1.001 if storage == "Q6_K" else np.full_like(scale, 1e-5)
    assert (np.abs(values - expected) <= tolerance).all()


@pytest.mark.parametrize("storage", QUANTISED)
@pytest.mark.parametrize("num_rows", [64, 72, 128])
def test_packed_product_is_the_dequantised_product(storage: Storage, num_rows: int) -> None:
    rows = random_rows(storage)[:num_rows]
    linear = PackedLinear(num_rows, COLUMNS, parts=1 if storage in FOUR_BIT else 2)
    linear.fill(0, unpack(storage, rows))
    x = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = linear(x).float()
    expected = x.float() @ torch.from_numpy(dequantize(storage, rows)).T
    assert y.shape == (5, num_rows)
    # bf16 rounds each of scale, zero, and one or two outputs to 8 bits.
    magnitude = (x.float().abs() @ torch.from_numpy(np.abs(dequantize(storage, rows))).T).max()
    assert (y - expected).abs().max() < magnitude * 2**-8


def test_plain_types_round_trip() -> None:
    values = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    assert (dequantize("F32", values.view(np.uint8)) == values).all()
    assert (dequantize("F16", values.astype(np.float16).view(np.uint8)) == values.astype(np.float16)).all()
    bf16 = torch.from_numpy(values).bfloat16()
    stored = bf16.view(torch.uint8).numpy()
    assert (dequantize("BF16", stored) == bf16.float().numpy()).all()
