"""Causal attention of one sequence over its slab: batched matrix products around a float32 softmax.

The query heads of a KV group are rows of one product, so grouped heads read each key once. On CPUs this is
several times faster in decode than scaled_dot_product_attention.

A row's bits must not depend on the other rows, the chunking or the room behind the last token. Measured on two
CPUs, a product of the stock library keeps that promise as long as its inner dimension is short; past about 1024
it is split in a way that depends on the shape. So the inner dimension is bounded here:
- scores: the inner dimension is head_dim; the columns are computed in blocks of 64 tokens;
- mixing values: at most 512 tokens at a time, at fixed positions; the parts are added in float32, in order.
Columns are rounded up to whole blocks, which also keeps the library from compiling a kernel for every length.
A masked column has probability zero and a finite value: it adds nothing, exactly.

Shapes: H query heads, K key/value heads, G = H / K, T new tokens, C columns (cached tokens), D head_dim,
R = G * T rows, N blocks, B tokens of a block.
"""

from __future__ import annotations

import torch

from butterfly.engine.kv_cache import KEY_BLOCK

_TILE = 128  # query tokens at a time: the score matrix stays small, and later columns are not computed
_VALUE_SPAN = 512  # tokens that one product mixes


def attend(
    q_THD: torch.Tensor, keys_NKDB: torch.Tensor, values_KCD: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    """Return [T, H * D] for queries at positions [start, start + T), already scaled and rotated.

    The cache must hold those positions, and zeros behind them up to the next multiple of 64.
    """
    tiles = [
        _attend_tile(q_THD[first : first + _TILE], keys_NKDB, values_KCD, start + first, window)
        for first in range(0, len(q_THD), _TILE)
    ]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def _attend_tile(
    q_THD: torch.Tensor, keys_NKDB: torch.Tensor, values_KCD: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    num_tokens, _, head_dim = q_THD.shape
    num_kv_heads = values_KCD.shape[0]
    first, end = _columns(start, num_tokens, window)
    q_TKGD = q_THD.view(num_tokens, num_kv_heads, -1, head_dim)
    q_KRD = q_TKGD.permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)
    scores_KRC = _scores(q_KRD, keys_NKDB[first // KEY_BLOCK : end // KEY_BLOCK])
    _mask(scores_KRC.view(num_kv_heads, -1, num_tokens, end - first), start, first, window)
    weights_KRC = torch.softmax(scores_KRC, dim=-1, dtype=torch.float32).to(q_THD.dtype)
    mixed_KRD = _mix(weights_KRC, values_KCD[:, first:end], first)
    return mixed_KRD.view(num_kv_heads, -1, num_tokens, head_dim).permute(2, 0, 1, 3).reshape(num_tokens, -1)


def _columns(start: int, num_tokens: int, window: int | None) -> tuple[int, int]:
    """The whole blocks of cached positions that any of these rows may see."""
    first = 0 if window is None else max(0, start - window + 1) // KEY_BLOCK * KEY_BLOCK
    return first, -(-(start + num_tokens) // KEY_BLOCK) * KEY_BLOCK


def _scores(q_KRD: torch.Tensor, keys_NKDB: torch.Tensor) -> torch.Tensor:
    """q . k for all columns, [K, R, C]."""
    num_blocks, num_kv_heads, head_dim, block = keys_NKDB.shape
    num_rows = q_KRD.shape[1]
    if num_blocks == 1:
        return torch.bmm(q_KRD, keys_NKDB[0])
    q_NKRD = q_KRD.expand(num_blocks, -1, -1, -1).reshape(-1, num_rows, head_dim)
    scores = torch.bmm(q_NKRD, keys_NKDB.view(-1, head_dim, block)).view(num_blocks, num_kv_heads, num_rows, block)
    return scores.permute(1, 2, 0, 3).reshape(num_kv_heads, num_rows, -1)


def _mask(scores_KGTC: torch.Tensor, start: int, first: int, window: int | None) -> None:
    """Set what a row must not see to -inf, in place: the future, and what the window has left behind."""
    num_tokens, num_columns = scores_KGTC.shape[2:]
    if num_tokens == 1:
        scores_KGTC[..., start + 1 - first :] = float("-inf")
        if window is not None and start - first >= window:
            scores_KGTC[..., : start + 1 - first - window] = float("-inf")
        return
    columns = torch.arange(first, first + num_columns, device=scores_KGTC.device)
    rows = torch.arange(start, start + num_tokens, device=scores_KGTC.device)[:, None]
    hidden_TC = columns > rows
    if window is not None:
        hidden_TC |= columns <= rows - window
    scores_KGTC.masked_fill_(hidden_TC, float("-inf"))


def _mix(weights_KRC: torch.Tensor, values_KCD: torch.Tensor, first: int) -> torch.Tensor:
    """Weighted sum of values, [K, R, D]. Spans end at multiples of 512 counted from position 0."""
    num_columns = values_KCD.shape[1]
    split = min(num_columns, _VALUE_SPAN - first % _VALUE_SPAN)
    mixed = torch.bmm(weights_KRC[..., :split], values_KCD[:, :split])
    if split == num_columns:
        return mixed
    total = mixed.float()
    for begin in range(split, num_columns, _VALUE_SPAN):
        span = slice(begin, begin + _VALUE_SPAN)
        total += torch.bmm(weights_KRC[..., span], values_KCD[:, span])
    return total.to(weights_KRC.dtype)
