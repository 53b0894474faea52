"""Each kernel on the path gives a row the same bits whatever the other rows are: the exactness rule rests on this."""

from __future__ import annotations

from functools import cache
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from butterfly.engine.activation import activate
from butterfly.engine.attention import attend
from butterfly.engine.decode_attention import DecodeGroup
from butterfly.engine.decoder import RMSNorm
from butterfly.engine.int8_linear import Int8Linear, split_bytes
from butterfly.engine.kv_cache import KVCache, Slab
from butterfly.engine.linear import DenseLinear, Linear, PackedLinear
from butterfly.engine.quantization import unpack
from butterfly.engine.rope import Rope
from butterfly.specs import Activation, RopeSpec
from butterfly.worker.resources import has_int8_instructions

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
needs_vnni = pytest.mark.skipif(not has_int8_instructions(), reason="this CPU has no VNNI instructions")
LINEARS = ["dense", "packed4", "packed8", "packed8 head", pytest.param("int8", marks=needs_vnni)]
QUICK = settings(max_examples=15, deadline=None)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@cache
def case(kind: str, shape: tuple[int, int]) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    """A linear, an input of many rows, and its output for all of them at once."""
    num_rows, in_features = shape
    linear: Linear
    if kind == "dense":
        linear = DenseLinear(randn(num_rows, in_features), randn(num_rows))
    elif kind == "int8":
        integers = Int8Linear(num_rows, in_features)
        integers.fill(0, randn(num_rows, in_features).float())
        integers.finish(randn(num_rows).float())
        linear = integers
    else:
        storage, block = ("Q4_0", 18) if kind == "packed4" else ("Q8_0", 34)
        stored = torch.randint(0, 256, (num_rows, in_features // 32, block), generator=torch.Generator().manual_seed(1))
        blocks = stored.to(torch.uint8).numpy()
        blocks[..., 1] = 0x20  # a small positive float16 scale
        sum_dtype = torch.float32 if kind == "packed8 head" else torch.bfloat16
        packed = PackedLinear(num_rows, in_features, 1 if kind == "packed4" else 2, sum_dtype)
        packed.fill(0, unpack("Q4_0" if storage == "Q4_0" else "Q8_0", blocks.reshape(num_rows, -1)))
        linear = packed
    x = randn(MOST_ROWS, in_features, seed=2)
    return linear, x, linear(x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", LINEARS)
@QUICK
@given(data=st.data())
def test_linear_rows_do_not_depend_on_their_company(kind: str, shape: tuple[int, int], data: st.DataObject) -> None:
    linear, x, expected = case(kind, shape)
    num_rows = data.draw(st.one_of(st.integers(1, 9), st.integers(1, MOST_ROWS)))
    first = data.draw(st.integers(0, MOST_ROWS - num_rows))
    rows = slice(first, first + num_rows)
    assert torch.equal(linear(x[rows].contiguous()), expected[rows])


def slab_of(num_kv_heads: int, head_dim: int, length: int, capacity: int, dtype: torch.dtype = torch.bfloat16) -> Slab:
    cache = KVCache(1, num_kv_heads, head_dim, max_context=capacity, device=torch.device("cpu"), dtype=dtype)
    slab = cache.extend(0, 0, length)
    keys, values = randn(length, num_kv_heads, head_dim, seed=3), randn(length, num_kv_heads, head_dim, seed=4)
    slab.write(0, 0, keys.to(dtype), values.to(dtype))
    return slab


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("window", [None, 100])
@QUICK
@given(data=st.data())
def test_attention_does_not_depend_on_the_chunking(
    heads: tuple[int, int, int], window: int | None, data: st.DataObject
) -> None:
    _, num_kv_heads, head_dim = heads
    length = 700
    slab, q_THD, expected = attention_case(heads, window, length)
    start = data.draw(st.one_of(st.integers(0, length - 1), st.sampled_from([0, 1, 2, 63, 64, 511, 512, 513, 699])))
    num_tokens = data.draw(st.one_of(st.just(1), st.integers(1, length - start)))
    # What a chunk sees: the cache filled up to its own end, and nothing but zeros behind.
    known = slab_of(num_kv_heads, head_dim, start + num_tokens, 1024)
    known.write(0, 0, *tokens_of(slab, start + num_tokens))
    rows = slice(start, start + num_tokens)
    assert torch.equal(attend(q_THD[rows], known.keys[0], known.values[0], start, window), expected[rows])


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("window", [None, 100])
@QUICK
@given(data=st.data())
def test_attention_of_a_group_is_that_of_each_alone(
    heads: tuple[int, int, int], window: int | None, data: st.DataObject
) -> None:
    """Whatever the company, the order, and the number of columns that the longest one asks for."""
    _, num_kv_heads, head_dim = heads
    slab, q_THD, expected = attention_case(heads, window, 700)
    num_columns = data.draw(st.sampled_from([64, 128, 256, 512]))
    positions = data.draw(st.lists(st.integers(0, num_columns - 1), min_size=1, max_size=7))
    slabs = [slab_of(num_kv_heads, head_dim, position + 1, 1024) for position in positions]
    for one, position in zip(slabs, positions, strict=True):
        one.write(0, 0, *tokens_of(slab, position))  # all but the newest, which the group writes
    keys, values = tokens_of(slab, num_columns)
    group = DecodeGroup(range(len(positions)), slabs, num_columns, {window})
    mixed = group.attend(0, q_THD[positions], keys[positions], values[positions], window)
    assert torch.equal(mixed, expected[positions])
    for one, position in zip(slabs, positions, strict=True):
        assert all(map(torch.equal, tokens_of(one, position + 1), tokens_of(slab, position + 1)))


@pytest.mark.parametrize("heads", [(4, 1, 256), (9, 3, 64), (8, 8, 64), (32, 8, 128)], ids=str)
@pytest.mark.parametrize("window", [None, 512])
def test_attention_over_long_contexts_does_not_depend_on_the_chunking(
    heads: tuple[int, int, int], window: int | None
) -> None:
    """Past about 1024 columns the library splits a product by its shape; ours must not show it."""
    num_heads, num_kv_heads, head_dim = heads
    length = 4200
    slab = slab_of(num_kv_heads, head_dim, length, 4224)
    q_THD = (randn(length, num_heads, head_dim, seed=5).float() * head_dim**-0.5).bfloat16()
    for start, num_tokens in [(1023, 1), (1024, 1), (1500, 40), (2047, 2), (4096, 1), (4199, 1)]:
        known = slab_of(num_kv_heads, head_dim, start + num_tokens, 4224)
        known.write(0, 0, *tokens_of(slab, start + num_tokens))
        alone = attend(q_THD[start : start + num_tokens], known.keys[0], known.values[0], start, window)
        before = start - 30  # the same rows, behind others
        together = attend(q_THD[before : start + num_tokens + 30], slab.keys[0], slab.values[0], before, window)
        assert torch.equal(alone, together[30 : 30 + num_tokens])


@cache
def attention_case(
    heads: tuple[int, int, int], window: int | None, length: int
) -> tuple[Slab, torch.Tensor, torch.Tensor]:
    """A full cache, the queries of all its tokens, and what they attend to in one prefill."""
    num_heads, num_kv_heads, head_dim = heads
    slab = slab_of(num_kv_heads, head_dim, length, length + 24)
    q_THD = (randn(length, num_heads, head_dim, seed=5).float() * head_dim**-0.5).bfloat16()
    return slab, q_THD, attend(q_THD, slab.keys[0], slab.values[0], 0, window)


def tokens_of(slab: Slab, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first tokens of a slab: keys and values [T, K, D]."""
    keys_KDC = slab.keys[0].permute(1, 2, 0, 3).flatten(2)
    return keys_KDC[..., :count].permute(2, 0, 1), slab.values[0][:, :count].transpose(0, 1)


def test_attention_is_the_textbook_formula() -> None:
    for window in (None, 50):
        length = 600
        slab = slab_of(2, 32, length, length, torch.float32)
        keys, values = tokens_of(slab, length)
        q_THD = randn(length, 4, 32).float()
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        if window is not None:
            visible &= torch.ones(length, length, dtype=torch.bool).triu(1 - window)
        expected = F.scaled_dot_product_attention(
            q_THD.transpose(0, 1),
            keys.transpose(0, 1).repeat_interleave(2, 0),
            values.transpose(0, 1).repeat_interleave(2, 0),
            visible,
            scale=1.0,
        )
        actual = attend(q_THD, slab.keys[0], slab.values[0], 0, window)
        torch.testing.assert_close(actual, expected.transpose(0, 1).reshape(length, -1), atol=2e-5, rtol=2e-5)


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
    gate, part = x.float().chunk(2, dim=-1)[0], x[rows].float().chunk(2, dim=-1)[0]
    for activation in get_args(Activation):
        assert torch.equal(activate(activation, part), activate(activation, gate)[rows])
    (high_low, scale), (part_high_low, part_scale) = split_bytes(x), split_bytes(x[rows])
    assert torch.equal(part_high_low, high_low.view(2, MOST_ROWS, -1)[:, rows].flatten(0, 1))
    assert torch.equal(part_scale, scale[rows])


@pytest.mark.parametrize("kind", LINEARS)
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


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("width", [288, 1536, 5632, 20000])
def test_activation_does_not_depend_on_rows_or_threads(activation: Activation, width: int) -> None:
    gate = randn(128, 2 * width, seed=9).float().chunk(2, dim=-1)[0]
    expected = activate(activation, gate)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            for num_rows in (1, 2, 3, 5, 11, 31, 57, 127, 128):
                assert torch.equal(activate(activation, gate[:num_rows]), expected[:num_rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention_does_not_depend_on_the_number_of_threads(heads: tuple[int, int, int]) -> None:
    slab, q_THD, expected = attention_case(heads, None, 700)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            for start, end in ((0, 700), (300, 301), (699, 700)):
                actual = attend(q_THD[start:end], slab.keys[0], slab.values[0], start, None)
                assert torch.equal(actual, expected[start:end])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("width", [576, 5632])
def test_two_bytes_hold_an_activation_with_outliers(width: int) -> None:
    """A channel a thousand times larger than the others leaves them a precision like that of bfloat16."""
    x = randn(40, width, seed=8).float()
    x[:, 3] = 1000.0
    x[7] = 0.0
    both, scale = split_bytes(x)
    high, low = both.view(2, 40, width).int()
    assert ((high * 256 + low - 32896) * scale - x).abs().max() <= 0.51 * 1000 / 32512


@needs_vnni
def test_int8_is_the_product_of_what_was_given() -> None:
    linear, x, actual = case("int8", (576, 1536))
    weight, bias = randn(576, 1536).double(), randn(576).double()
    expected = x.double() @ weight.T + bias
    assert (actual - expected).norm() < 0.012 * (expected - bias).norm()  # a weight is rounded to 1/254 of its row
    assert linear.num_bytes == 576 * 1536 + 576 * (4 + 8 + 4)
