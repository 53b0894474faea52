"""Finding cached beginnings: hash chains over blocks of tokens.

The hash of a block covers its tokens and all before it, so one lookup per block finds the longest shared prefix
whatever order requests come in. Every hash knows the sequences that have computed the block. Python's hash of a
tuple of integers is good enough because a hit is compared token by token before it is used.

A sequence registers while it runs (others may copy what it has computed) and stays registered when it is kept.
Kept sequences are an LRU queue: `oldest_kept` is the next to go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """`num_tokens` tokens that `source_id` has in its KV cache."""

    source_id: int
    num_tokens: int
    is_kept: bool  # finished, so that its cache may be taken over
    source_tokens: int  # all that the source has


@dataclass(eq=False, slots=True)
class _Entry:
    tokens: Sequence[int]  # grows while the sequence runs; only the first `num_tokens` are cached
    num_tokens: int = 0
    hashes: list[int] = field(default_factory=list)  # of its whole cached blocks


class PrefixCache:
    """Which sequences have which beginnings in their KV cache, and which of them are only kept."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._entries: dict[int, _Entry] = {}
        self._by_hash: dict[int, dict[int, None]] = {}  # an ordered set: the newest sequence is last
        self._kept: OrderedDict[int, None] = OrderedDict()  # least recently used first

    # ------------------------------------------------------------------------------- questions

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def kept_ids(self) -> Iterable[int]:
        """Kept sequences, least recently used first."""
        return self._kept.keys()

    def oldest_kept(self) -> int | None:
        """Return the least recently used kept sequence, or None."""
        return next(iter(self._kept), None)

    def find(self, tokens: Sequence[int], limit: int) -> PrefixMatch | None:
        """Return the longest cached beginning of `tokens`, at most `limit` tokens, at least one block."""
        holders: dict[int, None] = {}
        for chain_hash in _chain(tokens[:limit], self._block_size):
            found = self._by_hash.get(chain_hash)
            if not found:
                break
            holders = found
        best = max((self._match(tokens, limit, source_id) for source_id in holders), key=_preference, default=None)
        return best if best is not None and best.num_tokens >= self._block_size else None

    # --------------------------------------------------------------------------------- changes

    def extend(self, sequence_id: int, tokens: Sequence[int], num_tokens: int) -> None:
        """Say that the first `num_tokens` of `tokens` are in the KV cache of a running sequence."""
        entry = self._entries.setdefault(sequence_id, _Entry(tokens))
        entry.num_tokens = num_tokens
        first = len(entry.hashes) * self._block_size
        if num_tokens - first < self._block_size:
            return
        before = entry.hashes[-1] if entry.hashes else 0
        for chain_hash in _chain(tokens[first:num_tokens], self._block_size, before):
            entry.hashes.append(chain_hash)
            self._by_hash.setdefault(chain_hash, {})[sequence_id] = None

    def keep(self, sequence_id: int) -> list[int]:
        """Keep a sequence that has finished. Returns kept ones that it makes superfluous: forget and release them."""
        entry = self._entries[sequence_id]
        entry.tokens = tuple(entry.tokens[: entry.num_tokens])
        contained = [other for other in self._kept if self._contains(entry, self._entries[other])]
        self._kept[sequence_id] = None
        return contained

    def use(self, sequence_id: int) -> None:
        """Say that a kept sequence was of use: it goes last."""
        if sequence_id in self._kept:
            self._kept.move_to_end(sequence_id)

    def forget(self, sequence_id: int) -> None:
        """Strike a sequence off, kept or running; an unknown one is no error."""
        self._kept.pop(sequence_id, None)
        entry = self._entries.pop(sequence_id, None)
        for chain_hash in entry.hashes if entry else ():
            holders = self._by_hash[chain_hash]
            del holders[sequence_id]
            if not holders:
                del self._by_hash[chain_hash]

    # ------------------------------------------------------------------------------ the insides

    def _match(self, tokens: Sequence[int], limit: int, source_id: int) -> PrefixMatch:
        entry = self._entries[source_id]
        shared = _shared_length(tokens, entry.tokens, min(limit, entry.num_tokens))
        return PrefixMatch(source_id, shared, source_id in self._kept, entry.num_tokens)

    def _contains(self, entry: _Entry, other: _Entry) -> bool:
        size = other.num_tokens
        return size <= entry.num_tokens and entry.tokens[:size] == other.tokens  # both are tuples by now


def _preference(match: PrefixMatch) -> tuple[int, bool, int]:
    """The longest; then a kept one, which costs no copy; then the shortest, of which least is lost."""
    return match.num_tokens, match.is_kept, -match.source_tokens


def _chain(tokens: Sequence[int], block_size: int, before: int = 0) -> Iterator[int]:
    """The hashes of the whole blocks of `tokens`; `before` is the hash of what precedes them."""
    for start in range(0, len(tokens) - block_size + 1, block_size):
        before = hash((before, *tokens[start : start + block_size]))
        yield before


def _shared_length(left: Sequence[int], right: Sequence[int], limit: int) -> int:
    limit = min(limit, len(left), len(right))
    if list(left[:limit]) == list(right[:limit]):  # the usual case, at the speed of C
        return limit
    return next((index for index in range(limit) if left[index] != right[index]), limit)
