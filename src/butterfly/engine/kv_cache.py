"""Keys and values of every live sequence: one contiguous slab per sequence in lazily committed memory.

On a CPU a slab is an anonymous mapping of the full context: address space costs nothing, pages are committed
when tokens are written, and the whole slab goes back to the system when the sequence is released. On other
devices a slab grows by doubling.

Values lie token after token; keys lie in blocks of 64 tokens, transposed within the block, which is what the
product with a few queries wants: several times faster than transposing on the way (see `attention`). Memory that
no token has written is zero, never garbage: masked positions are multiplied by zero, not skipped. So a token that is
forgotten is zeroed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from math import prod

import torch

from butterfly.errors import ProtocolError
from butterfly.specs import Adoption, KeptSequence

KEY_BLOCK = 64  # tokens
_FIRST_CAPACITY = 256  # tokens, of a slab that grows


class Slab:
    """The cache of one sequence on one stage. K key/value heads, D head_dim, B tokens of a block."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.num_tokens = 0
        self.num_pretended = 0  # see KVCache.pretend
        self.use(keys, values)

    def use(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Use keys [layers, blocks, K, D, B] and values [layers, K, capacity, D] from now on."""
        self.key_data, self.value_data = keys, values
        self.keys, self.values = list(keys), list(values)

    @property
    def capacity(self) -> int:
        return self.value_data.shape[2]

    def write(self, layer: int, start: int, keys_TKD: torch.Tensor, values_TKD: torch.Tensor) -> None:
        """Store the keys and values of tokens [start, start + T) of one layer."""
        end = start + len(keys_TKD)
        self.values[layer][:, start:end] = values_TKD.transpose(0, 1)
        blocks = self.keys[layer]
        position = start
        while position < end:
            block, offset = divmod(position, KEY_BLOCK)
            count = min(KEY_BLOCK - offset, end - position)
            tokens = keys_TKD[position - start : position - start + count]
            blocks[block, :, :, offset : offset + count] = tokens.permute(1, 2, 0)
            position += count

    def copy_from(self, source: Slab, num_tokens: int) -> None:
        """Take over the first tokens of another slab. Memory behind them is not touched, so not committed."""
        blocks, rest = divmod(num_tokens, KEY_BLOCK)
        self.key_data[:, :blocks] = source.key_data[:, :blocks]
        if rest:
            self.key_data[:, blocks, :, :, :rest] = source.key_data[:, blocks, :, :, :rest]
        self.value_data[:, :, :num_tokens] = source.value_data[:, :, :num_tokens]
        self.num_tokens = num_tokens

    def copy_layer(self, layer: int, source: Slab, source_layer: int, num_tokens: int) -> None:
        """Take over the first tokens of one layer of a slab with other layers."""
        blocks, rest = divmod(num_tokens, KEY_BLOCK)
        self.keys[layer][:blocks] = source.keys[source_layer][:blocks]
        if rest:
            self.keys[layer][blocks, :, :, :rest] = source.keys[source_layer][blocks, :, :, :rest]
        self.values[layer][:, :num_tokens] = source.values[source_layer][:, :num_tokens]

    def truncate(self, num_tokens: int) -> None:
        """Forget the tokens from `num_tokens` on: their memory is as if they had never been."""
        blocks, rest = divmod(num_tokens, KEY_BLOCK)
        if rest:
            self.key_data[:, blocks, :, :, rest:] = 0
        self.key_data[:, -(-num_tokens // KEY_BLOCK) : -(-self.num_tokens // KEY_BLOCK)] = 0
        self.value_data[:, :, num_tokens : self.num_tokens] = 0
        self.num_tokens = num_tokens


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
        self._num_layers, self._num_kv_heads, self._head_dim = num_layers, num_kv_heads, head_dim
        self._max_context = max_context
        self._device, self._dtype = device, dtype
        self._slabs: dict[int, Slab] = {}
        self.bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize

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
        cached = slab.num_tokens if slab is not None else 0
        if start != cached:
            raise ProtocolError(
                f"a step continues sequence {sequence_id} at position {start}, but {cached} of its tokens are cached"
            )
        if slab is None:
            slab = self._slabs[sequence_id] = Slab(*self._allocate(end))
        if end > slab.capacity:
            self._grow(slab, end)
        slab.num_tokens = end
        return slab

    def revisit(self, sequence_id: int, start: int, num_tokens: int) -> Slab:
        """Return the slab of a sequence whose cached positions [start, start + num_tokens) some layers compute again.

        Raises ProtocolError when they are not cached.
        """
        slab = self._slabs.get(sequence_id)
        if slab is None or start < 0 or start + num_tokens > slab.num_tokens:
            cached = slab.num_tokens if slab is not None else 0
            raise ProtocolError(
                f"a step goes over {start + num_tokens} tokens of sequence {sequence_id}, of which {cached} are cached"
            )
        return slab

    def keep(self, kept: Iterable[KeptSequence]) -> None:
        """Release all other sequences."""
        names = {sequence.sequence_id for sequence in kept}
        self._slabs = {name: slab for name, slab in self._slabs.items() if name in names}

    def take_over(self, source: KVCache | None, slots: Sequence[int | None], kept: Iterable[KeptSequence]) -> None:
        """Begin with these sequences, and with what `source` has of them in those of our layers that are its own.

        `slots` says, for each layer, which one of `source` it was; None: it was not there, and is to be computed again.
        `source` is empty then. Raises ProtocolError when it has fewer tokens than are to be kept.
        """
        is_same = source is not None and list(slots) == list(range(source._num_layers))
        for sequence in kept:
            old = source._slabs.pop(sequence.sequence_id, None) if source is not None else None
            has_layers = any(slot is not None for slot in slots)
            if has_layers and (old is None or old.num_tokens < sequence.num_tokens):
                cached = old.num_tokens if old is not None else 0
                raise ProtocolError(
                    f"{sequence.num_tokens} tokens of sequence {sequence.sequence_id} are to be kept, "
                    f"but {cached} are cached"
                )
            if is_same and old is not None:
                old.truncate(sequence.num_tokens)
                self._slabs[sequence.sequence_id] = old
                continue
            slab = self._slabs[sequence.sequence_id] = Slab(*self._allocate(sequence.num_tokens))
            slab.num_tokens = sequence.num_tokens
            for layer, slot in enumerate(slots):
                if slot is not None and old is not None:
                    slab.copy_layer(layer, old, slot, sequence.num_tokens)
        if source is not None:
            source._slabs.clear()

    def adopt(self, adoption: Adoption) -> None:
        """Begin a sequence with the first cached tokens of another, whose slab it copies or takes.

        Raises ProtocolError when the source has not so many tokens, or the sequence exists.
        """
        sequence_id, source_id, num_tokens = adoption.sequence_id, adoption.source_id, adoption.num_tokens
        source = self._slabs.get(source_id)
        cached = source.num_tokens if source is not None else 0
        if source is None or not 0 < num_tokens <= cached:
            raise ProtocolError(
                f"sequence {sequence_id} would start with {num_tokens} tokens of sequence {source_id}, "
                f"of which {cached} are cached"
            )
        if sequence_id in self._slabs:
            raise ProtocolError(f"sequence {sequence_id} cannot start with tokens of {source_id}: it exists already")
        # Copying what stays is also how the memory behind a short beginning goes back to the system.
        is_copied = adoption.keeps_source or num_tokens < cached - num_tokens
        if is_copied:
            slab = Slab(*self._allocate(num_tokens))
            slab.copy_from(source, num_tokens)
        else:
            slab = source
            slab.truncate(num_tokens)
        if not adoption.keeps_source:
            self.release(source_id)
        self._slabs[sequence_id] = slab

    def pretend(self, sequence_id: int, num_tokens: int) -> None:
        """For measuring: let a sequence have just so many tokens, whatever their keys and values are.

        Their memory is written once, since reading memory that never was costs nothing. What lies behind them is not
        zeroed, so what is computed from it is not to be used.
        """
        slab = self._slabs.get(sequence_id)
        if slab is None:
            slab = self._slabs[sequence_id] = Slab(*self._allocate(num_tokens))
        if num_tokens > slab.capacity:
            self._grow(slab, num_tokens)
        if num_tokens > slab.num_pretended:
            slab.key_data[:, : -(-num_tokens // KEY_BLOCK)] = 1
            slab.value_data[:, :, :num_tokens] = 1
            slab.num_pretended = num_tokens
        slab.num_tokens = num_tokens

    def release(self, sequence_id: int) -> None:
        """Drop a sequence; unknown ids are ignored (a sequence may be aborted before its first step)."""
        self._slabs.pop(sequence_id, None)

    @property
    def used_bytes(self) -> int:
        return sum(slab.num_tokens for slab in self._slabs.values()) * self.bytes_per_token

    def _allocate(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        on_cpu = self._device.type == "cpu"
        wanted = self._max_context if on_cpu else min(self._max_context, max(_FIRST_CAPACITY, num_tokens))
        num_blocks = -(-wanted // KEY_BLOCK)
        key_shape = (self._num_layers, num_blocks, self._num_kv_heads, self._head_dim, KEY_BLOCK)
        value_shape = (self._num_layers, self._num_kv_heads, num_blocks * KEY_BLOCK, self._head_dim)
        if not on_cpu:
            keys = torch.zeros(key_shape, dtype=self._dtype, device=self._device)
            return keys, torch.zeros(value_shape, dtype=self._dtype, device=self._device)
        size = prod(key_shape)
        memory = torch.frombuffer(mmap.mmap(-1, 2 * size * self._dtype.itemsize), dtype=self._dtype)
        return memory[:size].view(key_shape), memory[size:].view(value_shape)

    def _grow(self, slab: Slab, num_tokens: int) -> None:
        keys, values = self._allocate(max(num_tokens, 2 * slab.capacity))
        keys[:, : slab.key_data.shape[1]] = slab.key_data
        values[:, :, : slab.capacity] = slab.value_data
        slab.use(keys, values)
