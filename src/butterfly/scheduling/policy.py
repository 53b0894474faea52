"""The policies of the scheduler, each a small pure function. Change one here and nowhere else.

`AdmissionKey` orders the waiting requests: the smallest key is admitted first, and nobody overtakes a request that
has the smallest key but does not fit yet. Within a tenant the order is that of the key with nothing served, and must
not change while a request waits. A policy starves nobody if only finitely many later arrivals can get a smaller key
than a waiting request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from butterfly.scheduling.request_state import RequestState, Sequence

AdmissionKey = Callable[[RequestState, float], tuple[float, ...]]
"""(request, tokens that its tenant has been served) -> key"""

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0  # what a token counts for its tenant, as in the paper on virtual counters


def fair_share(state: RequestState, served_tokens: float) -> tuple[float, ...]:
    """Priority first, then the tenant that has been served least, then the order of arrival."""
    return state.request.priority, served_tokens, state.arrival_order


def first_come_first_served(state: RequestState, served_tokens: float) -> tuple[float, ...]:
    """The order of arrival and nothing else. A requeued request is ahead of all that came later."""
    return (state.arrival_order,)


def decode_cap(num_decoding: int, num_slots: int) -> int:
    """Return how many decode tokens one step takes: a burst must fill all stages, not one batch."""
    return -(-num_decoding // num_slots)


def prefill_order(sequence: Sequence) -> tuple[int, ...]:
    """The order in which sequences are prefilled: by priority, then of admission.

    After a recovery come first those that it interrupted: readers in mid-sentence before those who had no token yet,
    and the shortest first, which makes the mean pause the shortest. They are finitely many, so nobody starves.
    """
    state = sequence.state
    if not state.is_returning:
        return state.request.priority, 1, sequence.sequence_id
    num_missing = sequence.num_unscheduled_refill_tokens + sequence.num_unscheduled_tokens
    return state.request.priority, 0, int(state.num_output_tokens == 0), num_missing


def first_to_preempt(sequences: Iterable[Sequence]) -> Sequence | None:
    """Return the newest of the lowest priority: the least work is lost, and nobody older waits for it."""
    return max(
        sequences,
        key=lambda sequence: (sequence.state.request.priority, sequence.state.arrival_order),
        default=None,
    )


def takes_over(num_shared: int, num_source: int, num_free_blocks: int, num_needed_blocks: int, block_size: int) -> bool:
    """Whether a kept sequence is taken over rather than copied.

    A conversation that goes on takes over its own past. A beginning that many share stays for the next one, as
    long as there is room for a copy without driving anything else out.
    """
    return num_source - num_shared < block_size or num_free_blocks < num_needed_blocks
