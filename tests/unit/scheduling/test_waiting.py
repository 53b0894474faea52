"""The line of waiting requests and the virtual counters of tenants, on their own."""

from __future__ import annotations

from butterfly.scheduling import fair_share, first_come_first_served
from butterfly.scheduling.request_state import RequestState
from butterfly.scheduling.waiting import ServedTokens, WaitingLine
from tests.unit.scheduling.rig import make_request


def state(number: int, tenant: str = "", priority: int = 0, num_prompt: int = 4) -> RequestState:
    request = make_request(f"{tenant}{number}", num_prompt, tenant=tenant, priority=priority)
    return RequestState(request, 10, number, 0.0)


def drain(line: WaitingLine) -> list[str]:
    names = []
    while (first := line.first()) is not None:
        names.append(first.request.request_id)
        line.remove(first)
    return names


class TestServedTokens:
    def test_count_from_the_first_request_on(self) -> None:
        served = ServedTokens()
        served.enter("a")
        served.charge("a", 5.0)
        served.charge("a", 2.5)
        assert served.of("a") == 7.5

    def test_a_newcomer_starts_level_with_the_least_served_of_those_present(self) -> None:
        served = ServedTokens()
        served.enter("a")
        served.enter("b")
        served.charge("a", 100.0)
        served.charge("b", 60.0)
        served.enter("c")
        assert served.of("c") == 60.0

    def test_a_tenant_that_pauses_saves_nothing_up(self) -> None:
        served = ServedTokens()
        served.enter("pauses")
        served.charge("pauses", 10.0)
        served.enter("stays")
        served.leave("pauses")
        served.charge("stays", 1000.0)
        served.enter("pauses")
        assert served.of("pauses") == served.of("stays")

    def test_a_tenant_that_leaves_and_comes_back_at_once_loses_no_debt(self) -> None:
        served = ServedTokens()
        served.enter("a")
        served.enter("b")
        served.charge("a", 100.0)
        served.leave("a")
        served.enter("a")
        assert (served.of("a"), served.of("b")) == (100.0, 0.0)

    def test_idle_time_saves_nothing_up_either(self) -> None:
        served = ServedTokens()
        served.enter("works")
        served.charge("works", 1000.0)
        served.leave("works")
        served.enter("new")
        served.enter("works")
        assert served.of("new") == served.of("works")

    def test_a_tenant_is_present_until_its_last_request_ends(self) -> None:
        served = ServedTokens()
        served.enter("a")
        served.enter("a")
        served.charge("a", 50.0)
        served.enter("b")
        served.charge("b", 80.0)
        served.leave("a")
        served.enter("c")
        assert served.of("c") == 50.0

    def test_tenants_that_never_come_back_are_forgotten(self) -> None:
        served = ServedTokens()
        for number in range(100):
            served.enter(f"t{number}")
            served.charge(f"t{number}", 10.0)
            served.leave(f"t{number}")
        assert len(served._served) <= 1


class TestWaitingLine:
    def test_priority_goes_before_service_and_service_before_arrival(self) -> None:
        served = ServedTokens()
        line = WaitingLine(fair_share, served)
        for number, (tenant, priority) in enumerate([("a", 0), ("a", 0), ("b", 0), ("a", -1), ("b", 1)]):
            served.enter(tenant)
            line.push(state(number, tenant, priority))
        served.charge("a", 1.0)
        assert drain(line) == ["a3", "b2", "a0", "a1", "b4"]

    def test_another_key_is_another_order(self) -> None:
        served = ServedTokens()
        line = WaitingLine(first_come_first_served, served)
        for number, (tenant, priority) in enumerate([("a", 1), ("b", 0), ("a", -1)]):
            line.push(state(number, tenant, priority))
        assert drain(line) == ["a0", "b1", "a2"]

    def test_a_request_that_comes_back_is_ahead_of_those_that_came_later(self) -> None:
        line = WaitingLine(fair_share, ServedTokens())
        for number in (4, 5, 2, 3):
            line.push(state(number))
        assert drain(line) == ["2", "3", "4", "5"]

    def test_counts_requests_and_tokens_known_so_far(self) -> None:
        line = WaitingLine(fair_share, ServedTokens())
        first, second = state(0, "a", num_prompt=10), state(1, "b", num_prompt=3)
        second.tokens += [7, 7]  # preempted with two tokens of output
        line.push(first)
        line.push(second)
        assert (len(line), line.num_tokens) == (2, 15)
        assert {waiting.request.request_id for waiting in line} == {"a0", "b1"}
        line.remove(first)
        assert (len(line), line.num_tokens, line.first()) == (1, 5, second)
        line.clear()
        assert (len(line), line.num_tokens, line.first()) == (0, 0, None)
