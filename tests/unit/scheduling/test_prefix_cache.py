"""The longest cached beginning is found, whatever came in which order; the least recently used goes first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from butterfly.scheduling import prefix_cache
from butterfly.scheduling.prefix_cache import PrefixCache, PrefixMatch

TEXT = tuple(range(100, 164))


def kept(*texts: Sequence[int]) -> PrefixCache:
    """A cache, in blocks of four, that keeps sequences 1, 2, ... of these tokens."""
    cache = PrefixCache(4)
    for sequence_id, tokens in enumerate(texts, 1):
        cache.extend(sequence_id, tokens, len(tokens))
        cache.keep(sequence_id)
    return cache


def found(match: PrefixMatch | None) -> tuple[int, int] | None:
    return None if match is None else (match.source_id, match.num_tokens)


def test_the_longest_beginning_wins() -> None:
    cache = kept(TEXT[:8], (*TEXT[:12], 0, 0, 0, 0), (*TEXT[:4], 0, 0, 0, 0))
    assert found(cache.find(TEXT, 64)) == (2, 12)


def test_a_match_may_end_within_a_block() -> None:
    cache = kept((*TEXT[:10], 0, 0))
    assert cache.find(TEXT, 64) == PrefixMatch(1, 10, is_kept=True, source_tokens=12)


def test_no_more_than_the_limit_is_matched() -> None:
    cache = kept(TEXT[:16])
    assert found(cache.find(TEXT, 7)) == (1, 7)


@pytest.mark.parametrize("tokens", [TEXT[:3], (0, *TEXT[1:]), (*TEXT[:3], 0, *TEXT[4:])])
def test_less_than_a_block_is_no_match(tokens: Sequence[int]) -> None:
    assert kept(TEXT[:16]).find(tokens, 64) is None


def test_only_what_is_said_to_be_cached_of_a_running_sequence_is_found() -> None:
    cache, tokens = PrefixCache(4), list(TEXT[:6])
    cache.extend(1, tokens, 5)
    assert cache.find(TEXT, 64) == PrefixMatch(1, 5, is_kept=False, source_tokens=5)
    tokens += TEXT[6:14]
    cache.extend(1, tokens, 13)
    assert found(cache.find(TEXT, 64)) == (1, 13)


def test_a_block_is_only_found_behind_the_blocks_before_it() -> None:
    cache = kept((*TEXT[4:8], *TEXT[4:8]))
    assert cache.find((*TEXT[:4], *TEXT[4:8]), 8) is None


def test_of_equally_long_ones_a_kept_one_is_taken_then_the_shortest() -> None:
    cache = kept((*TEXT[:8], *[1] * 8), (*TEXT[:8], *[2] * 4))
    cache.extend(3, (*TEXT[:8], 3), 9)
    assert found(cache.find((*TEXT[:8], 9, 9), 9)) == (2, 8)


def test_hashes_that_collide_are_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "hash", lambda _: 7, raising=False)
    cache = kept(TEXT[:8])
    assert cache.find([0] * 8, 8) is None
    assert found(cache.find(TEXT, 8)) == (1, 8)


def test_what_is_forgotten_is_not_found_and_leaves_nothing_behind() -> None:
    cache = kept(TEXT[:16], (*TEXT[:8], 0, 0, 0, 0))
    cache.forget(1)
    cache.forget(9)
    assert found(cache.find(TEXT, 64)) == (2, 8)
    cache.forget(2)
    assert (cache.find(TEXT, 64), cache.num_kept, cache._by_hash, cache._entries) == (None, 0, {}, {})


def test_the_least_recently_used_is_the_oldest() -> None:
    cache = kept(TEXT[:8], TEXT[8:16], TEXT[16:24])
    cache.use(1)
    cache.use(9)
    assert list(cache.kept_ids()) == [2, 3, 1]
    assert (cache.oldest_kept(), cache.num_kept) == (2, 3)
    assert PrefixCache(4).oldest_kept() is None


def test_keeping_names_those_that_the_new_one_contains() -> None:
    cache = kept(TEXT[:8], TEXT[:5], (*TEXT[:8], 0), TEXT[:24])
    cache.extend(9, list(TEXT), 16)
    assert cache.keep(9) == [1, 2]
