"""The policies, one row each."""

from __future__ import annotations

import pytest

from butterfly.scheduling import AdmissionKey, Scheduler, first_come_first_served
from butterfly.scheduling.policy import fill_batch, least_loaded_slot
from butterfly.scheduling.request_state import RequestState, Sequence
from tests.unit.scheduling.fake_engine import FakeEngine, make_config, make_request, run_until_idle


def shortest_prompt_first(state: RequestState) -> tuple[float, ...]:
    return (state.num_prompt_tokens, state.arrival_order)


def make_sequence(number: int, num_tokens: int, num_computed: int = 0, num_output: int = 0) -> Sequence:
    state = RequestState(make_request(str(number), num_tokens - num_output), 10, number, 0.0)
    state.tokens += [0] * num_output
    return Sequence(number, 0, state, num_computed)


@pytest.mark.parametrize(
    ("key", "order"),
    [(first_come_first_served, ["long", "short", "middle"]), (shortest_prompt_first, ["short", "middle", "long"])],
)
def test_the_admission_key_orders_the_waiting(key: AdmissionKey, order: list[str]) -> None:
    config = make_config(max_num_sequences=1)
    scheduler = Scheduler(config, admission_key=key)
    for name, length in (("long", 9), ("short", 1), ("middle", 5)):
        scheduler.add(make_request(name, length), 0.0)
    outputs = run_until_idle(scheduler, FakeEngine(config))
    assert [output.request_id for output in outputs if output.finish_reason] == order


def test_the_least_loaded_slot_has_fewest_sequences_then_least_to_compute() -> None:
    long, short = make_sequence(1, 50), make_sequence(2, 5)
    assert least_loaded_slot([[long], [], []]) == 1
    assert least_loaded_slot([[long], [short]]) == 1
    assert least_loaded_slot([[short, short], [long]]) == 1


def test_a_batch_has_decodes_first_then_the_oldest_prefill_within_the_budget() -> None:
    prefill = make_sequence(1, 10, num_computed=2)
    decode = make_sequence(2, 6, num_computed=5, num_output=2)
    later = make_sequence(3, 4)
    assert fill_batch([prefill, decode, later], 5) == [(decode, 1), (prefill, 4)]
    assert fill_batch([prefill, decode, later], 10) == [(decode, 1), (prefill, 8), (later, 1)]


def test_the_last_token_of_a_prompt_is_no_decode() -> None:
    decode = make_sequence(2, 6, num_computed=5, num_output=2)
    assert fill_batch([make_sequence(1, 4, num_computed=3), decode], 1) == [(decode, 1)]


def test_a_batch_leaves_out_what_is_in_flight_or_ended() -> None:
    flying, ended = make_sequence(1, 5), make_sequence(2, 5)
    flying.start_step(2)
    ended.state.finish("abort")
    assert fill_batch([flying, ended], 10) == []
