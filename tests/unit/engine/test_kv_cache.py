"""Beginning a sequence with the cache of another: what is taken, what is left, and what must be zero."""

from __future__ import annotations

import pytest
import torch

from butterfly.engine.kv_cache import KVCache, Slab
from butterfly.errors import ProtocolError
from butterfly.specs import Adoption, KeptSequence

LAYERS, HEADS, DIM, CONTEXT = 2, 3, 8, 300
LENGTH = 200
LENGTHS = [1, 15, 16, 63, 64, 65, 100, 101, 128, 150, 199, 200]


def cache_with_source() -> tuple[KVCache, Slab]:
    """Sequence 1 with LENGTH tokens, of which the last ones have overflowed."""
    cache = KVCache(LAYERS, HEADS, DIM, max_context=CONTEXT, device=torch.device("cpu"), dtype=torch.float32)
    slab = cache.extend(1, 0, LENGTH)
    generator = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        keys, values = torch.randn(2, LENGTH, HEADS, DIM, generator=generator)
        keys[-1] = values[-1] = torch.inf
        slab.write(layer, 0, keys, values)
    return cache, slab


def keys_by_token(slab: Slab) -> torch.Tensor:
    """[layers, K, capacity, D], as the values lie."""
    return slab.key_data.permute(0, 2, 1, 4, 3).flatten(2, 3)


def adopt(cache: KVCache, num_tokens: int, *, keeps_source: bool, sequence_id: int = 2, source_id: int = 1) -> None:
    cache.adopt(
        Adoption(sequence_id=sequence_id, source_id=source_id, num_tokens=num_tokens, keeps_source=keeps_source)
    )


@pytest.mark.parametrize("keeps_source", [True, False], ids=["copied", "taken"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_the_beginning_is_there_and_zeros_behind_it(num_tokens: int, keeps_source: bool) -> None:
    cache, source = cache_with_source()
    keys, values = keys_by_token(source).clone(), source.value_data.clone()
    adopt(cache, num_tokens, keeps_source=keeps_source)
    slab = cache.extend(2, num_tokens, 1)  # only the right length can go on
    kept = (torch.arange(slab.capacity) < num_tokens)[:, None]
    assert torch.equal(slab.value_data, torch.where(kept, values, 0.0))
    assert torch.equal(keys_by_token(slab), torch.where(kept, keys, 0.0))


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_a_copy_leaves_its_source_alone(num_tokens: int) -> None:
    cache, source = cache_with_source()
    keys, values = source.key_data.clone(), source.value_data.clone()
    adopt(cache, num_tokens, keeps_source=True)
    assert cache.used_bytes == (LENGTH + num_tokens) * cache.bytes_per_token
    copy = cache.extend(2, num_tokens, 1)
    for layer in range(LAYERS):
        copy.write(layer, num_tokens, torch.ones(1, HEADS, DIM), torch.ones(1, HEADS, DIM))
    assert cache.extend(1, LENGTH, 1) is source
    assert torch.equal(source.key_data, keys)
    assert torch.equal(source.value_data, values)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_a_source_that_is_taken_is_gone(num_tokens: int) -> None:
    cache, _ = cache_with_source()
    adopt(cache, num_tokens, keeps_source=False)
    assert cache.used_bytes == num_tokens * cache.bytes_per_token
    with pytest.raises(ProtocolError, match="sequence 1 at position 200, but 0 of its tokens are cached"):
        cache.extend(1, LENGTH, 1)


def test_a_slab_that_grows_can_be_adopted() -> None:
    cache = KVCache(
        LAYERS, HEADS, DIM, max_context=1000, device=torch.device("meta"), dtype=torch.float32
    )  # no values, but the shapes of a device that allocates as it goes
    cache.extend(1, 0, 700)
    adopt(cache, 300, keeps_source=True)
    assert cache.extend(2, 300, 500).capacity >= 800
    adopt(cache, 650, keeps_source=False, sequence_id=3)
    assert cache.extend(3, 650, 350).capacity >= 1000


@pytest.mark.parametrize(
    ("adoption", "problem"),
    [
        (
            Adoption(sequence_id=2, source_id=9, num_tokens=5, keeps_source=True),
            "2 would start with 5 .* 9, of which 0",
        ),
        (Adoption(sequence_id=2, source_id=1, num_tokens=201, keeps_source=False), "201 .* 1, of which 200 are cached"),
        (Adoption(sequence_id=2, source_id=1, num_tokens=0, keeps_source=True), "2 would start with 0 tokens"),
        (Adoption(sequence_id=4, source_id=1, num_tokens=5, keeps_source=False), "4 cannot start .* 1: it exists"),
        (Adoption(sequence_id=1, source_id=1, num_tokens=5, keeps_source=True), "1 cannot start .* 1: it exists"),
    ],
)
def test_what_cannot_be_adopted_is_refused_and_changes_nothing(adoption: Adoption, problem: str) -> None:
    cache, _ = cache_with_source()
    cache.extend(4, 0, 3)
    with pytest.raises(ProtocolError, match=problem):
        cache.adopt(adoption)
    assert cache.used_bytes == (LENGTH + 3) * cache.bytes_per_token
    assert cache.extend(1, LENGTH, 1).num_tokens == LENGTH + 1


class TestTakingOver:
    """Another stage begins with what this one has in the layers that both have."""

    def moved(self, slots: list[int | None], num_tokens: int) -> tuple[KVCache, Slab]:
        """A cache whose layers were those of the source in these slots, and what the source had."""
        cache, source = cache_with_source()
        before = Slab(source.key_data.clone(), source.value_data.clone())
        other = KVCache(len(slots), HEADS, DIM, max_context=CONTEXT, device=torch.device("cpu"), dtype=torch.float32)
        other.take_over(cache, slots, [KeptSequence(sequence_id=1, num_tokens=num_tokens)])
        assert cache.used_bytes == 0
        return other, before

    @pytest.mark.parametrize("num_tokens", LENGTHS)
    @pytest.mark.parametrize("slots", [[0, 1], [None, 0], [1, None, None], [None]], ids=str)
    def test_layers_that_stay_are_there_and_zeros_everywhere_else(
        self, slots: list[int | None], num_tokens: int
    ) -> None:
        cache, before = self.moved(slots, num_tokens)
        slab = cache.revisit(1, 0, num_tokens)
        kept = (torch.arange(slab.capacity) < num_tokens)[:, None]
        for layer, slot in enumerate(slots):
            if slot is None:
                assert not slab.value_data[layer].any()
                assert not slab.key_data[layer].any()
            else:
                assert torch.equal(slab.value_data[layer], torch.where(kept, before.value_data[slot], 0.0))
                assert torch.equal(keys_by_token(slab)[layer], torch.where(kept, keys_by_token(before)[slot], 0.0))
        assert cache.extend(1, num_tokens, 1).num_tokens == num_tokens + 1

    def test_who_is_not_named_is_gone(self) -> None:
        cache, _ = cache_with_source()
        other = KVCache(LAYERS, HEADS, DIM, max_context=CONTEXT, device=torch.device("cpu"), dtype=torch.float32)
        other.take_over(cache, [0, 1], [])
        assert (cache.used_bytes, other.used_bytes) == (0, 0)

    def test_a_stage_without_a_past_has_room_for_them(self) -> None:
        cache = KVCache(LAYERS, HEADS, DIM, max_context=CONTEXT, device=torch.device("cpu"), dtype=torch.float32)
        cache.take_over(None, [None, None], [KeptSequence(sequence_id=5, num_tokens=70)])
        assert not cache.revisit(5, 0, 70).key_data.any()

    def test_more_than_there_is_cannot_be_kept(self) -> None:
        with pytest.raises(ProtocolError, match="201 tokens of sequence 1 are to be kept, but 200 are cached"):
            self.moved([0, None], LENGTH + 1)

    @pytest.mark.parametrize(("sequence_id", "start", "count"), [(1, 150, 51), (2, 0, 1), (1, -1, 2)])
    def test_what_is_not_cached_cannot_be_gone_over(self, sequence_id: int, start: int, count: int) -> None:
        cache, _ = cache_with_source()
        with pytest.raises(ProtocolError, match=f"tokens of sequence {sequence_id}"):
            cache.revisit(sequence_id, start, count)
