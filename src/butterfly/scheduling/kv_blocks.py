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
        self._owned: dict[int, tuple[int, ...]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return sum(len(blocks) for blocks in self._owned.values())

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self._block_size)

    def can_reserve(self, num_tokens: int) -> bool:
        return self.blocks_for(num_tokens) <= len(self._free)

    def reserve(self, sequence_id: int, num_tokens: int) -> None:
        """Give `sequence_id` room for `num_tokens`. Raises InvariantError when it cannot."""
        require(sequence_id not in self._owned, f"sequence {sequence_id} already owns blocks")
        count = self.blocks_for(num_tokens)
        require(count <= len(self._free), f"{count} blocks wanted but {len(self._free)} are free")
        self._owned[sequence_id] = tuple(self._free.pop() for _ in range(count))

    def release(self, sequence_id: int) -> None:
        """Take back every block of `sequence_id`. Raises InvariantError when it owns none."""
        require(sequence_id in self._owned, f"sequence {sequence_id} owns no blocks")
        self._free.extend(self._owned.pop(sequence_id))

    def check(self, owners: Iterable[int]) -> None:
        """Raise InvariantError unless free + used = all, each block once, and `owners` are the owners."""
        used = [block for blocks in self._owned.values() for block in blocks]
        require(
            sorted(self._free + used) == list(range(self._num_blocks)),
            f"{len(self._free)} free + {len(used)} used blocks are not the {self._num_blocks} there are",
        )
        expected, actual = sorted(owners), sorted(self._owned)
        require(expected == actual, f"blocks are owned by sequences {actual}, but {expected} are admitted")
