"""Attention of many sequences with one new token each, in one pair of products.

One by one, a sequence costs a dozen small operations per layer, most of whose time is not arithmetic. Here the caches
of a group are copied side by side, which for short ones is far cheaper; long ones stay with `attention.attend`, which
reads them where they lie. A row has the same bits either way (tests/property/test_kernels.py): the blocks, the
spans and the order are the same, and masked columns add nothing, exactly.

Shapes: B sequences, H query heads, K key/value heads, G = H / K, D head_dim, N blocks, C = 64 N columns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from butterfly.engine.kv_cache import KEY_BLOCK, Slab

MAX_COLUMNS = 512  # one span of `attention`; about here the copies cost what the calls do


def columns_of_group(num_cached: int) -> int | None:
    """Return how many columns a sequence's group has, a power of two; None when it is too long for one."""
    columns = KEY_BLOCK
    while columns < num_cached:
        columns *= 2
    return columns if columns <= MAX_COLUMNS else None


class DecodeGroup:
    """Rows `rows` of the batch: one token each, the last of its slab, which may be no longer than `num_columns`."""

    def __init__(
        self, rows: Sequence[int], slabs: Sequence[Slab], num_columns: int, windows: Collection[int | None]
    ) -> None:
        device = slabs[0].key_data.device
        self.rows = torch.tensor(rows, device=device)
        self.is_whole_batch_of = len(rows) if list(rows) == list(range(len(rows))) else 0
        num_blocks = num_columns // KEY_BLOCK
        positions = [slab.num_tokens - 1 for slab in slabs]
        # By layer, so that a layer does no more than take its own.
        self._keys = list(zip(*(slab.key_data[:, :num_blocks].unbind() for slab in slabs), strict=True))
        self._values = list(zip(*(slab.value_data[:, :, :num_columns].unbind() for slab in slabs), strict=True))
        new_keys, new_values = [], []
        for slab, position in zip(slabs, positions, strict=True):
            block, offset = divmod(position, KEY_BLOCK)
            new_keys.append(slab.key_data[:, block, :, :, offset].unbind())
            new_values.append(slab.value_data[:, :, position].unbind())
        self._new_keys, self._new_values = list(zip(*new_keys, strict=True)), list(zip(*new_values, strict=True))
        last_B1 = torch.tensor(positions, device=device)[:, None]
        columns = torch.arange(num_columns, device=device)
        self._hidden: dict[int | None, torch.Tensor] = {}
        for window in windows:
            hidden_BC = columns > last_B1
            if window is not None:
                hidden_BC |= columns <= last_B1 - window
            self._hidden[window] = hidden_BC[:, None, None]

    def attend(
        self, slot: int, q_BHD: torch.Tensor, k_BKD: torch.Tensor, v_BKD: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Write the new keys and values of layer `slot`, and return [B, H * D]."""
        torch._foreach_copy_(self._new_keys[slot], k_BKD.unbind())
        torch._foreach_copy_(self._new_values[slot], v_BKD.unbind())
        num_sequences, num_heads, head_dim = q_BHD.shape
        keys_BNKDb, values_BKCD = _side_by_side(self._keys[slot]), _side_by_side(self._values[slot])
        num_blocks, num_kv_heads = keys_BNKDb.shape[1:3]
        q_BKGD = q_BHD.view(num_sequences, 1, num_kv_heads, -1, head_dim)
        q_PGD = q_BKGD.expand(-1, num_blocks, -1, -1, -1).reshape(-1, num_heads // num_kv_heads, head_dim)
        scores_PGb = torch.bmm(q_PGD, keys_BNKDb.view(-1, head_dim, KEY_BLOCK))
        scores_BNKGb = scores_PGb.view(num_sequences, num_blocks, num_kv_heads, -1, KEY_BLOCK)
        scores_BKGC = scores_BNKGb.permute(0, 2, 3, 1, 4).reshape(num_sequences, num_kv_heads, q_PGD.shape[1], -1)
        scores_BKGC = scores_BKGC.masked_fill_(self._hidden[window], float("-inf"))
        weights_BKGC = torch.softmax(scores_BKGC, dim=-1, dtype=torch.float32).to(q_BHD.dtype)
        mixed = torch.bmm(weights_BKGC.flatten(0, 1), values_BKCD.flatten(0, 1))
        return mixed.view(num_sequences, -1)


def _side_by_side(caches: Sequence[torch.Tensor]) -> torch.Tensor:
    return caches[0][None] if len(caches) == 1 else torch.stack(list(caches))
