"""The block books balance, and say so when they do not."""

from __future__ import annotations

import pytest

from butterfly.scheduling import InvariantError
from butterfly.scheduling.kv_blocks import BlockPool


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1, 1), (16, 1), (17, 2), (32, 2)])
def test_tokens_round_up_to_blocks(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(4, 16).blocks_for(num_tokens) == num_blocks


def test_reserve_and_release_move_blocks() -> None:
    pool = BlockPool(4, 16)
    pool.reserve(1, 33)
    assert (pool.num_free, pool.num_used) == (1, 3)
    assert pool.can_reserve(16)
    assert not pool.can_reserve(17)
    pool.check([1])
    pool.release(1)
    assert (pool.num_free, pool.num_used) == (4, 0)
    pool.check([])


def test_misuse_is_an_invariant_error() -> None:
    pool = BlockPool(2, 16)
    pool.reserve(1, 16)
    with pytest.raises(InvariantError, match="already owns"):
        pool.reserve(1, 1)
    with pytest.raises(InvariantError, match="2 blocks wanted but 1 are free"):
        pool.reserve(2, 32)
    with pytest.raises(InvariantError, match="owns no blocks"):
        pool.release(2)
    with pytest.raises(InvariantError, match=r"owned by sequences \[1\], but \[\] are admitted"):
        pool.check([])


def test_a_lost_block_is_found() -> None:
    pool = BlockPool(2, 16)
    pool._free.pop()
    with pytest.raises(InvariantError, match=r"1 free \+ 0 used"):
        pool.check([])
