"""Causal attention of one sequence over its slab: two batched products around a float32 softmax.

The query heads of a KV group are rows of one product, so grouped heads read each key once. On CPUs this is
several times faster in decode than scaled_dot_product_attention, and a row's bits do not depend on the other rows
or on the chunking. Prefill is tiled over query rows: the score matrix stays small and the columns after a tile,
which the mask would hide, are not computed.

Shapes: H query heads, K key/value heads, G = H / K, T new tokens, C cached tokens, D head_dim.
"""

from __future__ import annotations

import torch

_TILE = 128  # query tokens at a time
_ALIGN = 64  # the first column of a window is rounded down to this, so that sums keep their grouping


def attend(
    q_THD: torch.Tensor, keys_KCD: torch.Tensor, values_KCD: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    """Return [T, H * D] for queries at positions [start, start + T), already scaled and rotated.

    `keys_KCD` and `values_KCD` may have more columns than start + T; those are not read.
    """
    num_tokens = len(q_THD)
    tiles = [
        _attend_tile(q_THD[first : first + _TILE], keys_KCD, values_KCD, start + first, window)
        for first in range(0, num_tokens, _TILE)
    ]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def _attend_tile(
    q_THD: torch.Tensor, keys_KCD: torch.Tensor, values_KCD: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    num_tokens, num_heads, head_dim = q_THD.shape
    num_kv_heads = keys_KCD.shape[0]
    first, end = _columns(start, num_tokens, window)
    rows = num_heads // num_kv_heads * num_tokens
    if num_tokens == 1:
        q_KRD = q_THD.view(num_kv_heads, rows, head_dim)
    else:
        q_KRD = q_THD.view(num_tokens, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        q_KRD = q_KRD.reshape(num_kv_heads, rows, head_dim)
    scores_KRC = torch.bmm(q_KRD, keys_KCD[:, first:end].transpose(1, 2))
    hidden_TC = _hidden_columns(start, num_tokens, first, end, window, q_THD.device)
    if hidden_TC is not None:
        scores_KRC.view(num_kv_heads, -1, num_tokens, end - first).masked_fill_(hidden_TC, float("-inf"))
    weights_KRC = torch.softmax(scores_KRC, dim=-1, dtype=torch.float32).to(q_THD.dtype)
    mixed_KRD = torch.bmm(weights_KRC, values_KCD[:, first:end])
    if num_tokens == 1:
        return mixed_KRD.reshape(1, -1)
    mixed = mixed_KRD.view(num_kv_heads, -1, num_tokens, head_dim).permute(2, 0, 1, 3)
    return mixed.reshape(num_tokens, -1)


def _columns(start: int, num_tokens: int, window: int | None) -> tuple[int, int]:
    """The cached positions that any of these rows may see."""
    first = 0 if window is None else max(0, start - window + 1) // _ALIGN * _ALIGN
    return first, start + num_tokens


def _hidden_columns(
    start: int, num_tokens: int, first: int, end: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """True where a row must not look: [T, C]. None when every row sees every column."""
    clipped = window is not None and start + num_tokens - first > window
    if num_tokens == 1 and not clipped:
        return None
    columns = torch.arange(first, end, device=device)
    rows = torch.arange(start, start + num_tokens, device=device)[:, None]
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return hidden
