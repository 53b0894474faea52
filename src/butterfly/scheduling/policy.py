"""The policies of the scheduler, each a small pure function. Change one here and nowhere else.

`AdmissionKey` orders the waiting requests: the smallest key is admitted first, and nobody overtakes a
request that has the smallest key but does not fit yet. A key must not change while a request waits. A
policy starves nobody if only finitely many later arrivals can get a smaller key than a waiting request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Series

from butterfly.scheduling.request_state import RequestState, Sequence

AdmissionKey = Callable[[RequestState], tuple[float, ...]]


def first_come_first_served(state: RequestState) -> tuple[float, ...]:
    """Order of arrival. A requeued request keeps its place in line, ahead of all that came later."""
    return (state.arrival_order,)


def least_loaded_slot(slots: Series[Iterable[Sequence]]) -> int:
    """Return the slot for a new sequence: fewest sequences, then least left to compute, then lowest number.

    A burst must not land in one batch and leave the other stages idle.
    """

    def load(slot: int) -> tuple[int, int, int]:
        sequences = list(slots[slot])
        return len(sequences), sum(sequence.num_remaining_tokens for sequence in sequences), slot

    return min(range(len(slots)), key=load)


def fill_batch(sequences: Iterable[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """Share `budget` tokens among the schedulable sequences of a slot, given in order of admission.

    Decode tokens first: they are what a reader waits for and cost one token each. What is left goes to
    prefill, oldest first, cut into chunks by the budget. Returns (sequence, number of tokens) pairs.
    """
    ready = [sequence for sequence in sequences if sequence.is_schedulable]
    ready.sort(key=lambda sequence: not sequence.is_decoding)  # stable: keeps the order of admission
    batch = []
    for sequence in ready:
        num_tokens = min(budget, sequence.num_remaining_tokens)
        if num_tokens == 0:
            break
        batch.append((sequence, num_tokens))
        budget -= num_tokens
    return batch
