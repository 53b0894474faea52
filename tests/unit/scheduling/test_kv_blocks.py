"""The block books balance, and say so when they do not."""

from __future__ import annotations

import pytest

from butterfly.scheduling import InvariantError
from butterfly.scheduling.kv_blocks import BlockPool


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_tokens_round_up_to_blocks(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(4, 16).blocks_for(num_tokens) == num_blocks


def test_growing_takes_only_what_is_missing_and_a_release_gives_all_back() -> None:
    pool = BlockPool(4, 16)
    pool.grow(1, 17)
    assert (pool.num_free, pool.num_owned(1)) == (2, 2)
    pool.grow(1, 32)  # fits what it has
    pool.grow(1, 5)  # never shrinks
    assert pool.num_free == 2
    assert (pool.num_missing(1, 33), pool.num_missing(2, 33)) == (1, 3)
    assert (pool.can_grow(1, 64), pool.can_grow(2, 33)) == (True, False)
    pool.check([1])
    pool.release(1)
    pool.release(1)
    assert (pool.num_free, pool.num_owned(1)) == (4, 0)
    pool.check([])


def test_hand_over_keeps_the_beginning_and_frees_the_rest() -> None:
    pool = BlockPool(4, 16)
    pool.grow(1, 64)
    pool.hand_over(1, 2, 33)
    assert (pool.num_owned(1), pool.num_owned(2), pool.num_free) == (0, 3, 1)
    pool.check([2])


def test_misuse_is_an_invariant_error() -> None:
    pool = BlockPool(3, 16)
    pool.grow(1, 16)
    pool.grow(2, 16)
    with pytest.raises(InvariantError, match="2 blocks wanted but 1 are free"):
        pool.grow(3, 32)
    with pytest.raises(InvariantError, match="sequence 9 owns no blocks"):
        pool.hand_over(9, 3, 16)
    with pytest.raises(InvariantError, match="sequence 2 already owns"):
        pool.hand_over(1, 2, 16)
    with pytest.raises(InvariantError, match="sequence 1 holds fewer than 17 tokens"):
        pool.hand_over(1, 3, 17)


def test_the_check_names_blocks_that_nobody_should_own() -> None:
    pool = BlockPool(3, 16)
    pool.grow(1, 16)
    pool.grow(2, 16)
    with pytest.raises(InvariantError, match=r"sequences \[2\], which neither run nor are kept"):
        pool.check([1])


def test_a_lost_block_is_found() -> None:
    pool = BlockPool(2, 16)
    pool._free.pop()
    with pytest.raises(InvariantError, match=r"1 free \+ 0 owned blocks are not the 2"):
        pool.check([])


def test_a_shared_block_is_found() -> None:
    pool = BlockPool(3, 16)
    pool.grow(1, 16)
    pool.grow(2, 16)
    pool._owned[2] = list(pool._owned[1])
    with pytest.raises(InvariantError):
        pool.check([1, 2])
