"""The hidden states that a stage handed on, kept for as long as their sequences live: [tokens, hidden_size] of each.

When the next stage is lost, its layers can be computed again from here, and no token goes through those before it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from butterfly.errors import ProtocolError
from butterfly.specs import Adoption, KeptSequence, SequenceStep, StepPlan

_FIRST_CAPACITY = 64  # tokens


class Border:
    """Of the layer before which they are."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._hidden_size, self._dtype, self._device = hidden_size, dtype, device
        self._rows: dict[int, torch.Tensor] = {}  # with room for more tokens than there are
        self._num_tokens: dict[int, int] = {}

    def write(self, step: StepPlan, hidden: torch.Tensor) -> None:
        """Keep what a step computed."""
        first = 0
        for sequence in step.sequences:
            end = sequence.start + sequence.num_tokens
            rows = self._with_room(sequence.sequence_id, end)
            rows[sequence.start : end] = hidden[first : first + sequence.num_tokens]
            self._num_tokens[sequence.sequence_id] = max(end, self._num_tokens.get(sequence.sequence_id, 0))
            first += sequence.num_tokens

    def read(self, step: StepPlan) -> torch.Tensor:
        """Return [tokens of the step, hidden_size]. Raises ProtocolError for tokens that were never written."""
        return torch.cat([self._read(sequence) for sequence in step.sequences])

    def _read(self, sequence: SequenceStep) -> torch.Tensor:
        end = sequence.start + sequence.num_tokens
        if end > (kept := self._num_tokens.get(sequence.sequence_id, 0)):
            raise ProtocolError(
                f"hidden states of {end} tokens of sequence {sequence.sequence_id} are wanted, not {kept}"
            )
        return self._rows[sequence.sequence_id][sequence.start : end]

    def adopt(self, adoption: Adoption) -> None:
        """As the KV cache does it."""
        rows = self._rows.get(adoption.source_id)
        if rows is not None:
            num_tokens = min(adoption.num_tokens, self._num_tokens[adoption.source_id])
            self._rows[adoption.sequence_id] = rows[:num_tokens].clone()
            self._num_tokens[adoption.sequence_id] = num_tokens
        if not adoption.keeps_source:
            self.release(adoption.source_id)

    def release(self, sequence_id: int) -> None:
        """Unknown ids are ignored."""
        self._rows.pop(sequence_id, None)
        self._num_tokens.pop(sequence_id, None)

    def keep(self, kept: Iterable[KeptSequence]) -> None:
        """Forget all other sequences, and what these have beyond that."""
        lengths = {sequence.sequence_id: sequence.num_tokens for sequence in kept}
        for sequence_id in tuple(self._rows):
            if sequence_id not in lengths:
                self.release(sequence_id)
        for sequence_id, num_tokens in self._num_tokens.items():
            self._num_tokens[sequence_id] = min(num_tokens, lengths[sequence_id])

    def _with_room(self, sequence_id: int, num_tokens: int) -> torch.Tensor:
        rows = self._rows.get(sequence_id)
        capacity = 0 if rows is None else len(rows)
        if rows is None or num_tokens > capacity:
            size = (max(num_tokens, 2 * capacity, _FIRST_CAPACITY), self._hidden_size)
            grown = torch.zeros(size, dtype=self._dtype, device=self._device)
            if rows is not None:
                grown[:capacity] = rows
            rows = self._rows[sequence_id] = grown
        return rows
