"""From a step to the batch that the layers see: tokens of prompts first, short single tokens in groups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from butterfly.engine.decode_attention import DecodeGroup, columns_of_group
from butterfly.engine.decoder import Batch, SequenceRows
from butterfly.engine.kv_cache import KVCache
from butterfly.engine.rope import Rope
from butterfly.specs import SequenceStep, StepPlan


class Arranged(NamedTuple):
    """A batch, and where its rows come from."""

    batch: Batch
    rows: torch.Tensor | None  # the batch's row i is the step's row rows[i]; None: they are the same

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.rows is None else x[self.rows]

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Back into the order of the step."""
        if self.rows is None:
            return x
        y = torch.empty_like(x)
        y[self.rows] = x
        return y


class _Part(NamedTuple):
    """Tokens of one role and one sequence: rows [row, row + num_tokens) of the step."""

    sequence: SequenceStep
    row: int
    start: int
    num_tokens: int


def arrange(
    step: StepPlan, kv: KVCache, ropes: Sequence[Rope], windows: Collection[int | None], device: torch.device
) -> Arranged:
    """Make room in the cache and lay out the rows of a step.

    Raises ProtocolError as `KVCache.extend` does, or `revisit` for a step that refills.
    """
    prompt, generated = _split_roles(step)
    is_refill = step.refill is not None
    find = kv.revisit if is_refill else kv.extend
    slabs = {
        sequence.sequence_id: find(sequence.sequence_id, sequence.start, sequence.num_tokens)
        for sequence in step.sequences
    }
    alone: list[SequenceRows] = []
    grouped: dict[int, list[SequenceRows]] = {}
    order: list[int] = []
    positions: list[int] = []
    for part in (*prompt, *generated):
        slab = slabs[part.sequence.sequence_id]
        rows = SequenceRows(len(order), part.num_tokens, part.start, slab)
        is_newest = part.sequence.num_tokens == 1 and not is_refill  # as a group takes its members to be
        columns = columns_of_group(slab.num_tokens) if is_newest else None
        if columns is None or columns > slab.capacity:
            alone.append(rows)
        else:
            grouped.setdefault(columns, []).append(rows)
        order.extend(range(part.row, part.row + part.num_tokens))
        positions.extend(range(part.start, part.start + part.num_tokens))
    groups = [
        DecodeGroup([rows.first for rows in alike], [rows.slab for rows in alike], columns, windows)
        for columns, alike in grouped.items()
    ]
    index = torch.tensor(positions, device=device)
    angles = [rope.angles(index, max(positions)) for rope in ropes]
    batch = Batch(alone, groups, sum(part.num_tokens for part in prompt), angles)
    in_order = order == list(range(len(order)))
    return Arranged(batch, None if in_order else torch.tensor(order, device=device))


def _split_roles(step: StepPlan) -> tuple[list[_Part], list[_Part]]:
    """The parts that are tokens of prompts, and those that were generated; a replayed sequence may have both."""
    prompt: list[_Part] = []
    generated: list[_Part] = []
    row = 0
    for sequence in step.sequences:
        count = sequence.num_prompt_tokens
        if count:
            prompt.append(_Part(sequence, row, sequence.start, count))
        if count < sequence.num_tokens:
            generated.append(_Part(sequence, row + count, sequence.start + count, sequence.num_tokens - count))
        row += sequence.num_tokens
    return prompt, generated
