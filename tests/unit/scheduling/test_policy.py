"""The policies, one row each."""

from __future__ import annotations

import pytest

from butterfly.scheduling import AdmissionKey, Scheduler, fair_share, first_come_first_served
from butterfly.scheduling.policy import decode_cap, first_to_preempt, takes_over
from butterfly.scheduling.request_state import RequestState, Sequence
from tests.unit.scheduling.rig import Rig, make_config, make_request


def shortest_prompt_first(state: RequestState, served_tokens: float) -> tuple[float, ...]:
    return state.num_prompt_tokens, state.arrival_order


@pytest.mark.parametrize(
    ("key", "order"),
    [
        (fair_share, ["long", "short", "middle"]),
        (first_come_first_served, ["long", "short", "middle"]),
        (shortest_prompt_first, ["short", "middle", "long"]),
    ],
)
def test_the_admission_key_orders_the_waiting(key: AdmissionKey, order: list[str]) -> None:
    rig = Rig(make_config(max_num_sequences=1))
    rig.scheduler = Scheduler(rig.config, admission_key=key)
    for name, length in (("long", 9), ("short", 1), ("middle", 5)):
        rig.add(make_request(name, length))
    rig.run_until_idle()
    assert rig.ends() == order


@pytest.mark.parametrize(
    ("key", "smallest"), [(fair_share, ["c", "a", "b"]), (first_come_first_served, ["a", "b", "c"])]
)
def test_what_the_keys_weigh(key: AdmissionKey, smallest: list[str]) -> None:
    served = {"a": 5.0, "b": 5.0, "c": 1.0}
    states = [RequestState(make_request(name), 3, number, 0.0) for number, name in enumerate("abc")]
    ordered = sorted(states, key=lambda state: key(state, served[state.request.request_id]))
    assert [state.request.request_id for state in ordered] == smallest


@pytest.mark.parametrize(
    ("num_decoding", "num_slots", "cap"), [(0, 2, 0), (1, 2, 1), (4, 2, 2), (5, 2, 3), (7, 3, 3), (7, 1, 7)]
)
def test_a_step_takes_its_even_share_of_the_decode_tokens(num_decoding: int, num_slots: int, cap: int) -> None:
    assert decode_cap(num_decoding, num_slots) == cap


def test_the_newest_of_the_lowest_priority_is_preempted_first() -> None:
    states = [
        RequestState(make_request(name, priority=priority), 3, number, 0.0)
        for number, (name, priority) in enumerate([("a", 0), ("b", 1), ("c", 1), ("d", -1), ("e", 0)])
    ]
    sequences = [Sequence(9 - state.arrival_order, state) for state in states]
    order = []
    while (victim := first_to_preempt(sequences)) is not None:
        order.append(victim.state.request.request_id)
        sequences.remove(victim)
    assert order == ["c", "b", "e", "a", "d"]


@pytest.mark.parametrize(
    ("num_shared", "num_source", "num_free", "num_needed", "taken"),
    [
        (100, 100, 50, 10, True),  # a conversation that goes on
        (100, 115, 50, 10, True),  # all but a rest of less than a block
        (100, 116, 50, 10, False),  # a beginning that others may share, too
        (100, 116, 10, 10, False),
        (100, 116, 9, 10, True),  # no room for a copy
    ],
)
def test_a_kept_sequence_is_taken_over_or_copied(
    num_shared: int, num_source: int, num_free: int, num_needed: int, taken: bool
) -> None:
    assert takes_over(num_shared, num_source, num_free, num_needed, 16) is taken
