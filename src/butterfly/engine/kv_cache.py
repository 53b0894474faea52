"""Keys and values of every live sequence: one contiguous slab per sequence in lazily committed memory.

On a CPU a slab is an anonymous mapping of the full context: address space costs nothing, pages are committed
when tokens are written, and the whole slab goes back to the system when the sequence is released. On other
devices a slab grows by doubling.
"""

from __future__ import annotations

import mmap
from math import prod

import torch

from butterfly.errors import ProtocolError

_FIRST_CAPACITY = 256  # tokens, of a slab that grows


class Slab:
    """The cache of one sequence on one stage: `keys[layer]` and `values[layer]` are [KV heads, capacity, head_dim]."""

    def __init__(self, data: torch.Tensor) -> None:
        self.num_tokens = 0
        self.resize(data)

    def resize(self, data: torch.Tensor) -> None:
        """Use `data` [layers, 2, KV heads, capacity, head_dim] from now on."""
        self.data = data
        self.keys = [layer[0] for layer in data]
        self.values = [layer[1] for layer in data]

    @property
    def capacity(self) -> int:
        return self.data.shape[3]


class KVCache:
    """Slabs by sequence id. The scheduler says which sequences live; nothing is evicted here."""

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        max_context: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._shape = (num_layers, 2, num_kv_heads)
        self._head_dim, self._max_context = head_dim, max_context
        self._device, self._dtype = device, dtype
        self._slabs: dict[int, Slab] = {}
        self.bytes_per_token = prod(self._shape) * head_dim * dtype.itemsize

    def extend(self, sequence_id: int, start: int, num_tokens: int) -> Slab:
        """Return the slab of a sequence with room for positions [start, start + num_tokens).

        A sequence appears with its position 0. Raises ProtocolError when the positions do not continue it.
        """
        end = start + num_tokens
        if end > self._max_context:
            raise ProtocolError(
                f"sequence {sequence_id} would reach {end} tokens, over the context of {self._max_context}"
            )
        slab = self._slabs.get(sequence_id)
        if slab is None:
            if start != 0:
                raise ProtocolError(
                    f"sequence {sequence_id} starts at position {start}, but nothing of it is cached here"
                )
            slab = self._slabs[sequence_id] = Slab(self._allocate(end))
        elif start != slab.num_tokens:
            raise ProtocolError(
                f"sequence {sequence_id} has {slab.num_tokens} cached tokens, but a step starts at {start}"
            )
        if end > slab.capacity:
            self._grow(slab, end)
        slab.num_tokens = end
        return slab

    def release(self, sequence_id: int) -> None:
        """Drop a sequence; unknown ids are ignored (a sequence may be aborted before its first step)."""
        self._slabs.pop(sequence_id, None)

    def clear(self) -> None:
        self._slabs.clear()

    @property
    def used_bytes(self) -> int:
        # list(): read by the heartbeat thread while the main thread adds and drops slabs
        return sum(slab.num_tokens for slab in list(self._slabs.values())) * self.bytes_per_token

    def _allocate(self, num_tokens: int) -> torch.Tensor:
        if self._device.type == "cpu":
            shape = (*self._shape, self._max_context, self._head_dim)
            memory = mmap.mmap(-1, prod(shape) * self._dtype.itemsize)
            return torch.frombuffer(memory, dtype=self._dtype).view(shape)
        capacity = min(self._max_context, max(_FIRST_CAPACITY, num_tokens))
        return torch.empty(*self._shape, capacity, self._head_dim, dtype=self._dtype, device=self._device)

    def _grow(self, slab: Slab, num_tokens: int) -> None:
        larger = self._allocate(max(num_tokens, 2 * slab.capacity))
        larger[:, :, :, : slab.num_tokens] = slab.data[:, :, :, : slab.num_tokens]
        slab.resize(larger)
