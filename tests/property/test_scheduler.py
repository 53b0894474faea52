"""The scheduler keeps its promises under any arrivals, aborts, deadlines, KV sizes, failures and recoveries.

The scheduler is the real one. The engine is `FakeEngine`, which asserts for each step that a real stage could run
it: next position, tokens present, one decode step at a time, what is adopted is what the prompt says, room left.
Prompts are drawn from few tokens and begin like what others said, so that reuse is the rule.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypedDict

import msgspec
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from butterfly.errors import ContextLengthError, OverloadedError
from butterfly.scheduling import SchedulerConfig
from butterfly.specs import FinishReason, Request, RequestOutput, SamplingSpec
from tests.unit.scheduling.fake_engine import StageCost, logprobs_of, token_of, tokens_up_to
from tests.unit.scheduling.rig import Rig, make_config, make_request

configs = st.fixed_dictionaries(
    {
        "num_slots": st.integers(1, 4),
        "num_spare_slots": st.integers(0, 1),
        "max_num_sequences": st.integers(1, 6),
        "kv_capacity_tokens": st.integers(24, 128),
        "max_context": st.integers(16, 64),
        "max_waiting_tokens": st.integers(40, 400),
        "max_num_batched_tokens": st.integers(1, 24),
        "first_chunk_tokens": st.integers(1, 24),
        "block_size": st.sampled_from([1, 4, 8]),
        "prefix_reuse": st.sampled_from(["all", "all", "prompt", "off"]),
        "max_kept_sequences": st.sampled_from([64, 64, 2, 0]),
    }
).map(lambda options: make_config(**options))
costs = st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 0.1)), max_size=2)
SAMPLINGS = {
    "plain": SamplingSpec(),
    "with logprobs": SamplingSpec(num_logprobs=2),
    "with a presence penalty": SamplingSpec(presence_penalty=1.0),
    "with a repetition penalty": SamplingSpec(repetition_penalty=1.5),
}
BEGINNINGS = {"zeros": [0] * 40, "zeros and ones": [0, 1] * 20, "zeros, then ones": [0] * 16 + [1] * 24}


class Arrival(TypedDict):
    beginning: str
    cut: int  # how much of it
    tail: list[int]
    sampling: str
    fields: dict[str, Any]  # of the Request


arrivals = st.fixed_dictionaries(
    {
        "beginning": st.sampled_from(sorted(BEGINNINGS)),
        "cut": st.integers(0, 40),
        "tail": st.lists(st.integers(0, 2), min_size=1, max_size=8),
        "sampling": st.sampled_from(["plain", *SAMPLINGS]),
        "fields": st.fixed_dictionaries(
            {"max_tokens": st.integers(1, 24)},
            optional={
                "stop_token_ids": st.lists(st.integers(0, 96), max_size=2).map(tuple),
                "min_tokens": st.integers(0, 4),
                "num_prompt_logprobs": st.sampled_from([None, None, 0, 2]),
                "tenant": st.sampled_from("xyz"),
                "priority": st.integers(-1, 1),
                "timeout_s": st.sampled_from([None, None, 1.0, 10.0]),
            },
        ),
    }
)


@dataclass
class Client:
    """What one accepted request has got, and what it must get."""

    request: Request
    max_context: int
    deadline_s: float
    tokens: list[int] = field(default_factory=list)
    end: FinishReason | None = None

    @property
    def max_tokens(self) -> int:
        return min(self.request.max_tokens, self.max_context - len(self.request.prompt_token_ids))

    def receive(self, output: RequestOutput) -> None:
        assert self.end is None, "an output after the end"
        request, num_prompt = self.request, len(self.request.prompt_token_ids)
        is_first = not self.tokens
        for token in output.token_ids:
            assert token == token_of(request, num_prompt + len(self.tokens))
            self.tokens.append(token)
        assert (output.num_prompt_tokens, output.num_output_tokens) == (num_prompt, len(self.tokens))
        self.end = output.finish_reason
        if self.end in (None, "stop", "length"):
            stopped = self.tokens[-1] in request.stop_token_ids
            full = len(self.tokens) == self.max_tokens
            assert self.end == ("stop" if stopped else "length" if full else None)
            self._check_logprobs(output, num_prompt, is_first=is_first)

    def _check_logprobs(self, output: RequestOutput, num_prompt: int, *, is_first: bool) -> None:
        num_top, num_prompt_top = self.request.sampling.num_logprobs, self.request.num_prompt_logprobs
        last = num_prompt + len(self.tokens) - 1
        wanted = () if num_top is None else (logprobs_of(self.tokens[-1], last, num_top),)
        assert output.logprobs == wanted
        scored = range(1, num_prompt) if is_first and num_prompt_top is not None else ()
        prompt = self.request.prompt_token_ids
        assert output.prompt_logprobs == tuple(logprobs_of(prompt[p], p, num_prompt_top or 0) for p in scored)


class SchedulerStory(RuleBasedStateMachine):
    @initialize(
        config=configs, stage_costs=costs, expects_little=st.booleans(), arrivals=st.lists(arrivals, min_size=2)
    )
    def start(
        self, config: SchedulerConfig, stage_costs: list[StageCost], expects_little: bool, arrivals: list[Arrival]
    ) -> None:
        self.rig = Rig(config, stage_costs)
        self.scheduler, self.engine, self.config = self.rig.scheduler, self.rig.engine, config
        self.clients: dict[str, Client] = {}
        self.now_s = 0.0
        self.num_arrivals = 0
        if expects_little:  # so that too many are admitted, and some preempted
            for number in range(40):
                self.rig.add(make_request(f"short{number}", prompt=[number], max_tokens=1))
            self.rig.run_until_idle()
        self.requests_arrive(arrivals)

    def deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            self.clients[output.request_id].receive(output)

    def arrive(self, arrival: Arrival, beginning: list[int]) -> None:
        self.num_arrivals += 1
        prompt = [*beginning, *arrival["tail"]]
        name, sampling = f"r{self.num_arrivals}", SAMPLINGS[arrival["sampling"]]
        request = make_request(name, prompt=prompt, sampling=sampling, **arrival["fields"])
        num_prompt, capacity = len(prompt), self.config.num_blocks * self.config.block_size
        deadline_s = float("inf") if request.timeout_s is None else self.now_s + request.timeout_s
        client = Client(request, self.config.max_context, deadline_s)
        try:
            self.rig.add(request, self.now_s)
        except ContextLengthError:
            assert client.max_tokens < 1 or num_prompt + client.max_tokens > capacity
        except OverloadedError:
            assert self.scheduler.counts.num_waiting > 0
        else:
            assert client.max_tokens >= 1
            assert num_prompt + client.max_tokens <= capacity
            self.clients[request.request_id] = client

    @rule(arrivals=st.lists(arrivals, min_size=1, max_size=6))
    def more_arrive(self, arrivals: list[Arrival]) -> None:
        self.requests_arrive(arrivals)

    def requests_arrive(self, arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            self.arrive(arrival, BEGINNINGS[arrival["beginning"]][: arrival["cut"]])

    @rule(pick=st.integers(0, 1000), arrival=arrivals)
    def a_conversation_goes_on(self, pick: int, arrival: Arrival) -> None:
        talked = [client for client in self.clients.values() if client.tokens]
        if talked:
            before = talked[pick % len(talked)]
            self.arrive(arrival, [*before.request.prompt_token_ids, *before.tokens])

    @rule(pick=st.integers(0, 1000))
    def a_client_leaves(self, pick: int) -> None:
        self.scheduler.abort("never seen")
        for client in list(self.clients.values())[pick % 20 :: 20]:
            was_open = client.end is None
            self.scheduler.abort(client.request.request_id)
            self.deliver(self.scheduler.drain_outputs())
            assert not was_open or client.end == "abort"

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        outputs = self.scheduler.expire(self.now_s)
        assert all(output.timed_out and output.error for output in outputs)
        self.deliver(outputs)
        assert all(client.end is not None or client.deadline_s > self.now_s for client in self.clients.values())

    @rule()
    def a_step_is_sent(self) -> None:
        num_in_flight = len(self.engine.in_flight)
        plan = self.rig.try_step()
        assert plan is None or plan.sequences or not num_in_flight, "news alone do not take a busy slot"
        if plan is None and not num_in_flight:
            assert not self.scheduler.has_unfinished, "nothing under way, and nothing to send"

    @rule(count=st.integers(0, 20))
    def steps_are_answered(self, count: int) -> None:
        """Sends after each but the last, so that some steps are seen with room for more."""
        if self.engine.in_flight:
            self.deliver(self.rig.answer())
        for _ in range(count):
            self.rig.fill()
            if self.engine.in_flight:
                self.deliver(self.rig.answer())

    @rule(replaced=st.sampled_from([True, True, True, False]))
    def the_stages_are_lost(self, replaced: bool) -> None:
        late = [self.engine.answer() for _ in list(self.engine.in_flight)]
        self.engine.restart()
        if replaced:
            self.scheduler.requeue_all()
        else:
            outputs = self.scheduler.fail_all("lost")
            assert all(output.finish_reason == "error" and output.error == "lost" for output in outputs)
            self.deliver(outputs)
            assert all(client.end is not None for client in self.clients.values())
        assert all(self.scheduler.update(result) == [] for result in late)
        assert self.scheduler.counts.num_running == 0
        assert self.scheduler.counts.free_tokens == self.config.num_blocks * self.config.block_size

    @rule()
    def a_stage_is_lost(self) -> None:
        late = [self.engine.answer() for _ in list(self.engine.in_flight)]
        self.rig.replace_a_stage()
        assert all(self.scheduler.update(result) == [] for result in late)

    @invariant()
    def the_books_balance(self) -> None:
        self.scheduler.check_integrity()
        counts = self.scheduler.counts
        assert counts.num_running + counts.num_waiting == sum(c.end is None for c in self.clients.values())
        sampled = [
            part.sampling.seed
            for step in self.engine.in_flight.values()
            for part in step.sequences
            if part.sampling is not None
        ]
        assert len(set(sampled)) == len(sampled), "two samples of one request are under way"

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        # The first by priority and arrival of those that run is only preempted for one that goes before it. So it
        # ends after at most as many rounds as there are tokens to compute, and then the next one does.
        work = sum(len(c.request.prompt_token_ids) + 2 * c.max_tokens for c in self.clients.values())
        for _ in range(work * (len(self.clients) + 1) + 3):
            self.rig.fill()
            if not self.engine.in_flight:
                break
            while self.engine.in_flight:
                self.deliver(self.rig.answer())
        assert self.scheduler.is_idle, "somebody waits for ever"
        assert all(client.end is not None for client in self.clients.values())
        self.rig.run_until_idle()
        self.tell_what_happened()
        for cache in self.engine.caches.values():
            assert any(cache == tokens_up_to(r, len(cache)) for r in self.engine.requests.values()), "kept nonsense"

    def tell_what_happened(self) -> None:
        """For `pytest --hypothesis-show-statistics`: how often the rare things were met."""
        event("preempted", str(self.scheduler.counts.num_preemptions > 0))
        event("copied", str(any(adoption.keeps_source for adoption in self.engine.adoptions)))
        event("taken over", str(any(not adoption.keeps_source for adoption in self.engine.adoptions)))
        event("chunks of one prompt in flight", str(self.engine.max_chunks_in_flight))


SchedulerStory.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestSchedulerStory = SchedulerStory.TestCase


shapes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(config=configs, shapes=shapes)
def test_with_room_for_all_no_request_waits_longer_than_for_the_work_of_those_before_it(
    config: SchedulerConfig, shapes: list[tuple[int, int]]
) -> None:
    """Each round (every slot sends and is answered) brings one of the oldest at least one token further."""
    rig = Rig(msgspec.structs.replace(config, kv_capacity_tokens=4096))
    latest_round: dict[str, int] = {}
    work = 0
    for number, (num_prompt, max_tokens) in enumerate(shapes):
        name = f"r{number}"
        with suppress(ContextLengthError, OverloadedError):
            rig.add(make_request(name, num_prompt, max_tokens))
            work += num_prompt + max_tokens
            latest_round[name] = work
    for round_number in range(1, work + 1):
        rig.fill()
        while rig.engine.in_flight:
            for output in rig.answer():
                if output.finish_reason is not None:
                    assert round_number <= latest_round.pop(output.request_id)
    assert not latest_round


@settings(max_examples=60, deadline=None)
@given(config=configs, shapes=shapes, num_prompt=st.integers(1, 40), max_tokens=st.integers(1, 16))
def test_an_early_request_ends_though_others_of_equal_priority_arrive_for_ever(
    config: SchedulerConfig, shapes: list[tuple[int, int]], num_prompt: int, max_tokens: int
) -> None:
    """Other tenants come back as soon as they can. Each is ahead at most until it has been served as much, and
    whoever runs ends: a few sequences' work for each place there is."""
    rig = Rig(msgspec.structs.replace(config, max_waiting_tokens=1000))
    try:
        rig.add(make_request("early", num_prompt, max_tokens, tenant="early"))
    except ContextLengthError:
        return
    number, heaviest = 0, max(map(sum, [*shapes, (num_prompt, max_tokens)]))
    for _ in range(10 * config.max_num_sequences * heaviest):
        for tenant in "xyz":
            number += 1
            if rig.scheduler.counts.num_waiting < 10:
                with suppress(ContextLengthError, OverloadedError):
                    rig.add(make_request(f"r{number}", *shapes[number % len(shapes)], tenant=tenant))
        rig.fill()
        rig.answer()
        if "early" in rig.ends():
            return
    raise AssertionError("the early request waits for ever")
