"""KV cache accounting: which sequence owns which block. No bytes live here.

Stages store the cache of a sequence contiguously; blocks are only the unit in which the scheduler
promises it, so that every stage is known to have room before a step is sent.
"""

from __future__ import annotations

from collections.abc import Iterable


class InvariantError(AssertionError):
    """The books do not balance: a bug in the scheduler, never the fault of a request or a peer."""


def require(condition: bool, message: str) -> None:
    """Raise InvariantError with `message` unless `condition` holds (also under `python -O`)."""
    if not condition:
        raise InvariantError(message)


class BlockPool:
    """A fixed number of blocks, each free or owned by exactly one sequence."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._free = list(range(num_blocks))
        self._owned: dict[int, list[int]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_owned(self, sequence_id: int) -> int:
        return len(self._owned.get(sequence_id, ()))

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self._block_size)

    def num_missing(self, sequence_id: int, num_tokens: int) -> int:
        """Return how many blocks `sequence_id` lacks to hold `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - self.num_owned(sequence_id))

    def can_grow(self, sequence_id: int, num_tokens: int) -> bool:
        return self.num_missing(sequence_id, num_tokens) <= len(self._free)

    def grow(self, sequence_id: int, num_tokens: int) -> None:
        """Give `sequence_id` room for `num_tokens` tokens in all. Raises InvariantError when there is none."""
        count = self.num_missing(sequence_id, num_tokens)
        require(count <= len(self._free), f"{count} blocks wanted but {len(self._free)} are free")
        self._owned.setdefault(sequence_id, []).extend(self._free.pop() for _ in range(count))

    def hand_over(self, source_id: int, sequence_id: int, num_tokens: int) -> None:
        """Give the blocks of `source_id` to `sequence_id`, but for those that `num_tokens` tokens do not need."""
        require(source_id in self._owned, f"sequence {source_id} owns no blocks")
        require(sequence_id not in self._owned, f"sequence {sequence_id} already owns blocks")
        blocks = self._owned.pop(source_id)
        count = self.blocks_for(num_tokens)
        require(count <= len(blocks), f"sequence {source_id} holds fewer than {num_tokens} tokens")
        self._owned[sequence_id] = blocks[:count]
        self._free.extend(blocks[count:])

    def release(self, sequence_id: int) -> None:
        """Take back every block of `sequence_id`; one that owns none is no error."""
        self._free.extend(self._owned.pop(sequence_id, ()))

    def check(self, owners: Iterable[int]) -> None:
        """Raise InvariantError unless free + owned = all, each block once, and only `owners` own any."""
        used = [block for blocks in self._owned.values() for block in blocks]
        require(
            sorted(self._free + used) == list(range(self._num_blocks)),
            f"{len(self._free)} free + {len(used)} owned blocks are not the {self._num_blocks} there are",
        )
        strangers = sorted(set(self._owned) - set(owners))
        require(not strangers, f"blocks are owned by sequences {strangers}, which neither run nor are kept")
