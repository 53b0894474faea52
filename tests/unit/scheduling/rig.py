"""The real scheduler beside the engine in memory, and the few moves that every story is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import msgspec

from butterfly.scheduling import Scheduler, SchedulerConfig, TokenMatcher
from butterfly.specs import LayerRange, Request, RequestOutput, SamplingSpec, StepPlan
from tests.unit.scheduling.fake_engine import FakeEngine, StageCost, tokens_up_to

LOST = LayerRange(start=1, end=2)

_DEFAULTS = {
    "num_slots": 1,
    "max_num_sequences": 8,
    "kv_capacity_tokens": 1024,
    "max_context": 256,
    "max_waiting_tokens": 10_000,
}


def make_config(**options: object) -> SchedulerConfig:
    """One stage with plenty of room, changed by `options`."""
    return msgspec.convert({**_DEFAULTS, **options}, SchedulerConfig)


def make_request(
    name: str,
    num_prompt_tokens: int = 4,
    max_tokens: int = 3,
    *,
    prompt: Sequence[int] | None = None,
    sampling: SamplingSpec | None = None,
    **fields: object,
) -> Request:
    """A request whose seed, and so its output, follows from its name; so does a prompt that is not given."""
    seed = crc32(name.encode())
    tokens = range(seed, seed + num_prompt_tokens) if prompt is None else prompt
    request = Request(
        request_id=name,
        prompt_token_ids=tuple(tokens),
        max_tokens=max_tokens,
        sampling=msgspec.structs.replace(sampling or SamplingSpec(), seed=seed),
    )
    return msgspec.structs.replace(request, **fields)


def output_of(request: Request, count: int | None = None) -> list[int]:
    """The first `count` tokens that any engine here gives to a request; None: max_tokens."""
    num_prompt = len(request.prompt_token_ids)
    return tokens_up_to(request, num_prompt + (request.max_tokens if count is None else count))[num_prompt:]


class Rig:
    """Steps go to the engine in order and come back in order. Every output is remembered."""

    def __init__(self, config: SchedulerConfig, stage_costs: Sequence[StageCost] = ()) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.engine = FakeEngine(config, stage_costs)
        self.outputs: list[RequestOutput] = []
        self.requests: dict[str, Request] = {}

    def add(self, request: Request, now_s: float = 0.0, matcher: TokenMatcher | None = None) -> Request:
        self.engine.expect(request)
        self.scheduler.add(request, now_s, matcher)
        self.requests[request.request_id] = request
        return request

    def try_step(self) -> StepPlan | None:
        """Send a step if the scheduler has one."""
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if plan is not None:
            self.engine.accept(plan)
            counts, size = self.scheduler.counts, self.config.block_size
            assert self.engine.num_blocks * size == counts.used_tokens + counts.kept_tokens, "the books are wrong"
        return plan

    def step(self) -> StepPlan:
        """Send a step; there must be one."""
        plan = self.try_step()
        assert plan is not None
        return plan

    def fill(self) -> list[StepPlan]:
        """Send steps until the scheduler has none."""
        plans = []
        while (plan := self.try_step()) is not None:
            plans.append(plan)
        return plans

    def answer(self) -> list[RequestOutput]:
        """Answer the oldest step in flight."""
        outputs = self.scheduler.update(self.engine.answer())
        self.scheduler.check_integrity()
        return self.take(outputs)

    def take(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        self.outputs += outputs
        return outputs

    def round(self) -> StepPlan:
        """Send one step and answer it."""
        plan = self.step()
        self.answer()
        return plan

    def rounds(self, done: Callable[[], bool], max_steps: int = 2000) -> None:
        """Keep as many steps in flight as there may be, until `done`."""
        for _ in range(max_steps):
            self.fill()
            if done():
                return
            assert self.engine.in_flight, "nothing under way, and not done"
            self.answer()
        raise AssertionError(f"not done after {max_steps} steps")

    def run_until_idle(self) -> list[RequestOutput]:
        """Serve until no request is left; return all outputs since the start.

        Whatever happened on the way, every request got the tokens that any engine gives it, or a part of them.
        """
        self.take(self.scheduler.drain_outputs())
        self.rounds(lambda: not self.engine.in_flight)
        assert self.scheduler.is_idle
        counts = self.scheduler.counts
        assert (counts.num_running, counts.num_waiting, counts.used_tokens) == (0, 0, 0)
        assert self.engine.num_blocks * self.config.block_size == counts.kept_tokens, "more or less is kept than known"
        for name, request in self.requests.items():
            tokens = self.tokens(name)
            assert tokens == output_of(request, len(tokens)), f"{name} got wrong tokens"
        return self.outputs

    def replace_stages(self) -> None:
        """The stages died and others stand in for them."""
        self.engine.restart()
        self.scheduler.requeue_all()
        self.scheduler.check_integrity()

    def replace_a_stage(self, refill: LayerRange = LOST) -> None:
        """One of several stages died, and another takes its layers."""
        self.scheduler.hold()
        self.scheduler.check_integrity()
        kept = self.scheduler.kept_for(self.config)
        if kept:
            self.engine.move(kept, refill)
        else:
            self.engine.restart()
        self.take(self.scheduler.resume(self.config, refill if kept else None))
        self.scheduler.check_integrity()

    def tokens(self, name: str) -> list[int]:
        """All tokens that were delivered to one request, in order."""
        return [token for output in self.outputs if output.request_id == name for token in output.token_ids]

    def end(self, name: str) -> RequestOutput:
        """The one output that ends the request."""
        (end,) = (output for output in self.outputs if output.request_id == name and output.finish_reason)
        return end

    def ends(self) -> list[str]:
        """The requests that have ended, in order."""
        return [output.request_id for output in self.outputs if output.finish_reason]

    def shapes(self, plan: StepPlan) -> list[tuple[int, int, int]]:
        """(sequence id, start, tokens) of every part of a step."""
        return [(part.sequence_id, part.start, part.num_tokens) for part in plan.sequences]
