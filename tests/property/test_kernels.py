"""Each kernel on the path gives a row the same bits whatever the other rows are: the exactness rule rests on this."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from butterfly.engine.attention import attend
from butterfly.engine.decoder import ACTIVATIONS, RMSNorm
from butterfly.engine.linear import DenseLinear, Linear, PackedLinear
from butterfly.engine.quantization import unpack
from butterfly.engine.rope import Rope
from butterfly.specs import RopeSpec

MOST_ROWS = 160
# (out, in): SmolLM2, Gemma-3-270M, and wider matrices, where libraries start to choose other kernels for one row
SHAPES = [
    (960, 576),
    (576, 1536),
    (3072, 576),
    (1536, 640),
    (640, 2048),
    (2560, 2048),
    (5632, 2048),
    (2048, 5632),
]
HEADS = [(9, 3, 64), (4, 1, 256), (32, 4, 64), (4, 4, 32)]
QUICK = settings(max_examples=25, deadline=None)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@cache
def case(kind: str, shape: tuple[int, int]) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    """A linear, an input of many rows, and its output for all of them at once."""
    num_rows, in_features = shape
    linear: Linear
    if kind == "dense":
        linear = DenseLinear(randn(num_rows, in_features), randn(num_rows))
    else:
        storage, block = ("Q4_0", 18) if kind == "packed4" else ("Q8_0", 34)
        stored = torch.randint(0, 256, (num_rows, in_features // 32, block), generator=torch.Generator().manual_seed(1))
        blocks = stored.to(torch.uint8).numpy()
        blocks[..., 1] = 0x20  # a small positive float16 scale
        packed = PackedLinear(num_rows, in_features, parts=1 if kind == "packed4" else 2)
        packed.fill(0, unpack("Q4_0" if storage == "Q4_0" else "Q8_0", blocks.reshape(num_rows, -1)))
        linear = packed
    x = randn(MOST_ROWS, in_features, seed=2)
    return linear, x, linear(x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "packed4", "packed8"])
@QUICK
@given(data=st.data())
def test_linear_rows_do_not_depend_on_their_company(kind: str, shape: tuple[int, int], data: st.DataObject) -> None:
    linear, x, expected = case(kind, shape)
    num_rows = data.draw(st.one_of(st.integers(1, 9), st.integers(1, MOST_ROWS)))
    first = data.draw(st.integers(0, MOST_ROWS - num_rows))
    rows = slice(first, first + num_rows)
    assert torch.equal(linear(x[rows].contiguous()), expected[rows])


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("window", [None, 100])
@QUICK
@given(data=st.data())
def test_attention_does_not_depend_on_the_chunking(
    heads: tuple[int, int, int], window: int | None, data: st.DataObject
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    length = 420
    keys, values = randn(num_kv_heads, 512, head_dim, seed=3), randn(num_kv_heads, 512, head_dim, seed=4)
    q_THD = randn(length, num_heads, head_dim, seed=5) * head_dim**-0.5
    expected = attend(q_THD, keys, values, 0, window)
    start = data.draw(st.integers(0, length - 1))
    num_tokens = data.draw(st.one_of(st.just(1), st.integers(1, length - start)))
    rows = slice(start, start + num_tokens)
    assert torch.equal(attend(q_THD[rows], keys, values, start, window), expected[rows])


def test_attention_is_the_textbook_formula() -> None:
    for window in (None, 50):
        q_THD, keys, values = (
            randn(90, 4, 32).float(),
            randn(2, 90, 32, seed=1).float(),
            randn(2, 90, 32, seed=2).float(),
        )
        visible = torch.ones(90, 90, dtype=torch.bool).tril()
        if window is not None:
            visible &= torch.ones(90, 90, dtype=torch.bool).triu(1 - window)
        expected = F.scaled_dot_product_attention(
            q_THD.transpose(0, 1),
            keys.repeat_interleave(2, 0),
            values.repeat_interleave(2, 0),
            visible,
            scale=1.0,
        )
        actual = attend(q_THD, keys, values, 0, window)
        torch.testing.assert_close(actual, expected.transpose(0, 1).reshape(90, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [64, 256, 576, 640, 2048, 4096])
@QUICK
@given(num_rows=st.integers(1, MOST_ROWS), first=st.integers(0, MOST_ROWS - 1))
def test_row_wise_operations_do_not_depend_on_their_company(width: int, num_rows: int, first: int) -> None:
    x = randn(MOST_ROWS, width, seed=6)
    norm = RMSNorm(torch.rand(width, generator=torch.Generator().manual_seed(7)), 1e-5)
    rope = Rope(RopeSpec(theta=10000.0, dim=width // 4, interleaved=True), torch.device("cpu"))
    angles = rope.angles(torch.arange(MOST_ROWS), MOST_ROWS - 1)
    rows = slice(first, min(MOST_ROWS, first + num_rows))
    part_angles = (angles[0][rows], angles[1][rows])
    assert torch.equal(norm(x[rows]), norm(x)[rows])
    assert torch.equal(
        rope.rotate(x[rows].view(-1, 4, width // 4), *part_angles),
        rope.rotate(x.view(-1, 4, width // 4), *angles)[rows],
    )
    for activation in ACTIVATIONS.values():
        assert torch.equal(activation(x[rows]), activation(x)[rows])


@pytest.mark.parametrize("kind", ["dense", "packed4", "packed8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_does_not_depend_on_the_number_of_threads(kind: str, shape: tuple[int, int]) -> None:
    """Two stages with one thread each must agree with one stage that has two."""
    linear, x, expected = case(kind, shape)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            for num_rows in (1, 2, 7, MOST_ROWS):
                assert torch.equal(linear(x[:num_rows]), expected[:num_rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention_does_not_depend_on_the_number_of_threads(heads: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, head_dim = heads
    keys, values = randn(num_kv_heads, 512, head_dim, seed=3), randn(num_kv_heads, 512, head_dim, seed=4)
    q_THD = randn(200, num_heads, head_dim, seed=5) * head_dim**-0.5
    before = torch.get_num_threads()
    try:
        outputs = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            outputs.append(
                torch.cat([attend(q_THD, keys, values, 250, None), attend(q_THD[:1], keys, values, 500, 100)])
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
