"""Which steps are timed for a profile, on how many layers, and in what order.

Three kinds of stages, all of copies of one layer:
- deep ones read more weights than a cache holds, as a whole model does. On these, one token for each of a few sequences
  with little context is timed: such a step is bound by reading weights.
- shallow ones are enough where arithmetic or the KV cache is what takes the time: what more context adds, and prompts,
  for which one layer will do if it is not tiny.
- a single layer, alone and with the head: the first tells what a step takes beside its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from butterfly.specs import ModelSpec

_DECODE_COUNTS = (1, 2, 4, 8, 16)
_PREFILL_COUNTS = (16, 64, 256, 512)
_HEAD_COUNTS = (1, 4, 16)
_CONTEXTS = (16, 480, 512, 2048)  # on both sides of 511, where attention goes over to sequences one by one
ENOUGH_CONTEXT = _CONTEXTS[-1] + 1  # a model whose context is longer has the same points
_PREFILL_CONTEXT = 512
_DEEP_BYTES = 256 << 20
_SHALLOW_BYTES = 8 << 20
_PREFILL_BYTES = 2 << 20
_KV_BYTES = 64 << 20
_HEAD_BYTES = 256 << 20


class Point(NamedTuple):
    """A step to time: `num_tokens` sequences with one generated token each, or so many tokens of one prompt."""

    role: Literal["decode", "prefill"]
    num_layers: int
    num_tokens: int
    context: int  # cached tokens of each sequence
    head: bool = False


class Turn(NamedTuple):
    """A run of a point."""

    point: Point
    is_timed: bool = True


@dataclass(frozen=True, slots=True)
class Grid:
    """The points of one kind of layer. Each `contexts` ascends, as do the numbers of tokens."""

    deep: int  # layers
    shallow: int
    prefill_layers: int
    decode_counts: Sequence[int]
    decode_contexts: Sequence[int]
    prefill_counts: Sequence[int]
    prefill_contexts: Sequence[int]
    with_head: bool

    @property
    def head_counts(self) -> Sequence[int]:
        return [count for count in _HEAD_COUNTS if count in self.decode_counts] if self.with_head else []

    def one_layer(self) -> Point:
        return Point("decode", 1, 1, self.decode_contexts[0])

    def head(self, count: int) -> Point:
        return Point("decode", 1, count, self.decode_contexts[0], head=True)

    def deep_decode(self, count: int) -> Point:
        return Point("decode", self.deep, count, self.decode_contexts[0])

    def decode(self, count: int, context: int) -> Point:
        return Point("decode", self.shallow, count, context)

    def prefill(self, count: int, context: int) -> Point:
        return Point("prefill", self.prefill_layers, count, context)

    def decode_column(self, count: int) -> Sequence[Point]:
        """All that is timed of so many sequences, the quickest first."""
        heads = [self.head(count)] if count in self.head_counts else []
        points = [*(self.decode(count, context) for context in self.decode_contexts), *heads, self.deep_decode(count)]
        return list(dict.fromkeys([self.one_layer(), *points] if count == self.decode_counts[0] else points))

    def prefill_column(self, count: int) -> Sequence[Point]:
        return [self.prefill(count, context) for context in self.prefill_contexts]

    def round(self) -> Sequence[Turn]:
        """Every point once, in an order in which each finds the processor's cache as it should.

        A deep step follows a deep step, as one decode step another, and finds as much of its weights in the cache. It
        drives the weights of the other copies out, so what depends on finding them cold comes first behind it. Contexts
        are compared with one another, so they follow one another, and a step that is not timed goes before the first.
        """
        others = [
            self.one_layer(),
            *(self.head(count) for count in self.head_counts),
            *(self.prefill(count, context) for count in self.prefill_counts for context in self.prefill_contexts),
        ]
        turns: list[Turn] = []
        for index, count in enumerate(self.decode_counts):
            contexts = [self.decode(count, context) for context in self.decode_contexts]
            turns.append(Turn(self.deep_decode(count), is_timed=False))
            turns += map(Turn, [self.deep_decode(count), *others[index :: len(self.decode_counts)]])
            turns += [Turn(contexts[0], is_timed=False), *map(Turn, contexts)]
        return turns


def make_grid(
    model: ModelSpec, layer_bytes: int, kv_bytes_per_token: int, memory_bytes: int, *, with_head: bool
) -> Grid:
    """The grid for layers of this size, whose copies and caches take no more than `memory_bytes`, but for one layer.

    `kv_bytes_per_token` is that of one layer.
    """
    fitting = memory_bytes // 2 // layer_bytes
    wanted = max(2, -(-_DEEP_BYTES // layer_bytes))  # two tell a step's own time from that of its layers
    deep = max(1, min(wanted, fitting, model.num_layers))
    shallow = max(1, min(deep, _SHALLOW_BYTES // layer_bytes))
    kv_bytes = min(_KV_BYTES, memory_bytes // 4)
    longest = kv_bytes // (_DECODE_COUNTS[-1] * kv_bytes_per_token * shallow)
    longest = min(max(longest, _CONTEXTS[0]), model.max_context - 1)
    prefill_counts = [count for count in _PREFILL_COUNTS if 2 * count <= model.max_context] or [1]
    return Grid(
        deep=deep,
        shallow=shallow,
        prefill_layers=max(1, min(shallow, _PREFILL_BYTES // layer_bytes)),
        decode_counts=_DECODE_COUNTS,
        decode_contexts=sorted({min(context, longest) for context in _CONTEXTS}),
        prefill_counts=prefill_counts,
        prefill_contexts=sorted({0, min(_PREFILL_CONTEXT, model.max_context - prefill_counts[-1])}),
        with_head=with_head,
    )


def max_head_bytes(memory_bytes: int) -> int:
    """How much of a head is measured at most: of a larger one, some rows stand for all."""
    return min(_HEAD_BYTES, memory_bytes // 4)
