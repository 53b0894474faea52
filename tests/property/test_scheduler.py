"""The scheduler keeps its promises under any arrivals, aborts, orders of answers, failures and recoveries.

The scheduler is the real one. The engine is `FakeEngine`, which asserts for each step that a real stage
could run it: next position, tokens present, one flight at a time, releases once and in time, room left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from butterfly.errors import ContextLengthError, OverloadedError
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import FinishReason, Request, RequestOutput
from tests.unit.scheduling.fake_engine import FakeEngine, make_config, make_request, token_at

configs = st.builds(
    make_config,
    num_slots=st.integers(1, 4),
    max_num_sequences=st.integers(1, 6),
    kv_capacity_tokens=st.integers(24, 240),
    max_context=st.integers(8, 64),
    max_waiting_tokens=st.integers(20, 400),
    max_num_batched_tokens=st.integers(1, 24),
    block_size=st.sampled_from([1, 4, 16]),
)


@dataclass
class Client:
    """What one accepted request has got, and what it must get."""

    request: Request
    max_context: int
    tokens: list[int] = field(default_factory=list)
    end: FinishReason | None = None

    @property
    def max_tokens(self) -> int:
        return min(self.request.max_tokens, self.max_context - len(self.request.prompt_token_ids))

    def known_tokens(self) -> list[int]:
        return [*self.request.prompt_token_ids, *self.tokens]

    def receive(self, output: RequestOutput) -> None:
        assert self.end is None, "an output after the end"
        num_prompt = len(self.request.prompt_token_ids)
        for token in output.token_ids:
            assert token == token_at(self.request.sampling.seed, num_prompt + len(self.tokens))
            self.tokens.append(token)
        assert (output.num_prompt_tokens, output.num_output_tokens) == (num_prompt, len(self.tokens))
        self.end = output.finish_reason
        if self.end in (None, "stop", "length"):
            stopped = self.tokens[-1] in self.request.stop_token_ids
            full = len(self.tokens) == self.max_tokens
            assert self.end == ("stop" if stopped else "length" if full else None)


class SchedulerStory(RuleBasedStateMachine):
    @initialize(config=configs)
    def start(self, config: SchedulerConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.engine = FakeEngine(config)
        self.clients: dict[str, Client] = {}

    def deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            self.clients[output.request_id].receive(output)

    @rule(num_prompt=st.integers(1, 40), max_tokens=st.integers(1, 12), stop=st.integers(0, 96))
    def a_request_arrives(self, num_prompt: int, max_tokens: int, stop: int) -> None:
        number = len(self.clients) + 1
        request = make_request(f"r{number}", num_prompt, max_tokens, stop=(stop,), seed=number)
        client = Client(request, self.config.max_context)
        capacity = self.config.num_blocks * self.config.block_size
        try:
            self.scheduler.add(request, 0.0)
        except ContextLengthError:
            assert client.max_tokens < 1 or num_prompt + client.max_tokens > capacity
        except OverloadedError:
            assert self.scheduler.num_waiting_tokens + num_prompt > self.config.max_waiting_tokens
            assert self.scheduler.num_waiting > 0
        else:
            assert client.max_tokens >= 1
            assert num_prompt + client.max_tokens <= capacity
            self.clients[request.request_id] = client

    @precondition(lambda self: self.clients)
    @rule(pick=st.integers(0, 1000))
    def a_client_leaves(self, pick: int) -> None:
        client = list(self.clients.values())[pick % len(self.clients)]
        was_open = client.end is None
        self.scheduler.abort(client.request.request_id)
        self.deliver(self.scheduler.drain_outputs())
        assert not was_open or client.end == "abort"

    @precondition(lambda self: self.clients)
    @rule()
    def a_step_is_sent(self) -> None:
        num_in_flight = len(self.engine.in_flight)
        plan = self.scheduler.schedule()
        if plan is not None:
            assert plan.sequences or (plan.released and not num_in_flight)
            self.engine.accept(plan)

    @precondition(lambda self: self.engine.in_flight)
    @rule(pick=st.integers(0, 1000))
    def a_step_is_answered(self, pick: int) -> None:
        steps = list(self.engine.in_flight)
        self.deliver(self.scheduler.update(self.engine.answer(steps[pick % len(steps)])))

    @precondition(lambda self: self.engine.in_flight)
    @rule(pick=st.integers(0, 1000))
    def a_step_fails(self, pick: int) -> None:
        steps = list(self.engine.in_flight)
        step_id = steps[pick % len(steps)]
        del self.engine.in_flight[step_id]
        self.deliver(self.scheduler.fail_step(step_id, "lost"))

    @precondition(lambda self: self.scheduler.num_running)
    @rule()
    def the_stages_are_replaced(self) -> None:
        late = [self.engine.answer(step_id) for step_id in list(self.engine.in_flight)]
        self.engine.restart()
        self.scheduler.requeue_all()
        for result in late:
            assert self.scheduler.update(result) == []
        assert self.scheduler.num_running == 0

    @invariant()
    def the_books_balance(self) -> None:
        self.scheduler.check_integrity()
        num_open = sum(client.end is None for client in self.clients.values())
        assert self.scheduler.num_running + self.scheduler.num_waiting == num_open

    @invariant()
    def stages_hold_the_tokens_of_their_requests_and_nobody_overtook(self) -> None:
        arrivals = []
        for sequence_id, cache in sorted(self.engine.caches.items()):
            number = cache[0] // 1000  # prompt tokens tell whose they are
            arrivals.append(number)
            known = self.clients[f"r{number}"].known_tokens()
            assert cache == known[: len(cache)], f"sequence {sequence_id} computed something else"
        assert arrivals == sorted(arrivals), "admitted out of order"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        budget = sum(len(client.known_tokens()) + client.max_tokens for client in self.clients.values())
        for _ in range(budget + 3):
            while (plan := self.scheduler.schedule()) is not None:
                self.engine.accept(plan)
            for step_id in list(self.engine.in_flight):
                self.deliver(self.scheduler.update(self.engine.answer(step_id)))
        assert not self.scheduler.has_unfinished
        assert not self.engine.in_flight
        assert not self.engine.caches, "a sequence was never released"
        assert all(client.end is not None for client in self.clients.values())
        self.scheduler.check_integrity()


SchedulerStory.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSchedulerStory = SchedulerStory.TestCase


@settings(max_examples=60, deadline=None)
@given(
    config=configs,
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=12),
)
def test_no_request_waits_longer_than_for_the_work_of_those_before_it(
    config: SchedulerConfig, shapes: list[tuple[int, int]]
) -> None:
    """Each round (every slot sends and is answered) brings one of the oldest at least one token further."""
    scheduler, engine = Scheduler(config), FakeEngine(config)
    latest_round: dict[str, int] = {}
    work = 0
    for number, (num_prompt, max_tokens) in enumerate(shapes):
        try:
            scheduler.add(make_request(f"r{number}", num_prompt, max_tokens, seed=number), 0.0)
        except (ContextLengthError, OverloadedError):
            continue
        work += num_prompt + max_tokens
        latest_round[f"r{number}"] = work
    for round_number in range(1, work + 1):
        while (plan := scheduler.schedule()) is not None:
            engine.accept(plan)
        for step_id in list(engine.in_flight):
            for output in scheduler.update(engine.answer(step_id)):
                if output.finish_reason is not None:
                    assert round_number <= latest_round.pop(output.request_id)
    assert not latest_round
