"""Stages in memory: they keep, per sequence, the tokens that steps brought, and sample like the real ones.

The token at a position is a function of the request (its seed) and the position alone, so a test knows
what every request must get, whatever the batches, the chunks and the failures on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import Request, RequestOutput, SampledToken, SamplingSpec, StepPlan, StepResult


def make_config(
    num_slots: int = 1,
    max_num_sequences: int = 8,
    kv_capacity_tokens: int = 1024,
    max_context: int = 256,
    max_waiting_tokens: int = 10_000,
    max_num_batched_tokens: int = 512,
    block_size: int = 16,
) -> SchedulerConfig:
    return SchedulerConfig(
        num_slots=num_slots,
        max_num_sequences=max_num_sequences,
        kv_capacity_tokens=kv_capacity_tokens,
        max_context=max_context,
        max_waiting_tokens=max_waiting_tokens,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
    )


def make_request(
    name: str, num_prompt_tokens: int = 4, max_tokens: int = 3, stop: tuple[int, ...] = (), seed: int = 0
) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=tuple(range(1000 * seed, 1000 * seed + num_prompt_tokens)),
        max_tokens=max_tokens,
        sampling=SamplingSpec(seed=seed),
        stop_token_ids=stop,
    )


def token_at(seed: int, position: int) -> int:
    """The token that any engine here samples for this seed at this position."""
    return (seed * 31 + position * 7) % 97


@dataclass
class FakeEngine:
    """Runs steps and checks that each is one that a real stage could run."""

    config: SchedulerConfig
    caches: dict[int, list[int]] = field(default_factory=dict)  # tokens in the KV cache, by sequence id
    prompt_lengths: dict[int, int] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    in_flight: dict[int, StepPlan] = field(default_factory=dict)  # by step id

    def accept(self, plan: StepPlan) -> None:
        """Take a step over: release, then check every sequence in it."""
        assert plan.slot not in {step.slot for step in self.in_flight.values()}, "two steps in one slot"
        assert 0 <= plan.slot < self.config.num_slots
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        for sequence_id in plan.released:
            assert sequence_id in self.met, "released before any step carried it"
            assert sequence_id not in self.released, "released twice"
            self.released.add(sequence_id)
            self.caches.pop(sequence_id, None)
        flying = [s.sequence_id for step in self.in_flight.values() for s in step.sequences]
        ids = [sequence.sequence_id for sequence in plan.sequences]
        assert len(set(ids + flying)) == len(ids + flying), "a sequence is twice in flight"
        assert not set(ids) & self.released, "a released sequence runs"
        for sequence in plan.sequences:
            self.met.add(sequence.sequence_id)
            cache = self.caches.setdefault(sequence.sequence_id, [])
            known = self.prompt_lengths.setdefault(sequence.sequence_id, sequence.prompt_length)
            assert sequence.prompt_length == known
            assert sequence.start == len(cache), "not the next position"
            assert sequence.num_tokens == len(sequence.token_ids) > 0
            cache.extend(sequence.token_ids)
        assert len(self.caches) <= self.config.max_num_sequences
        assert sum(map(len, self.caches.values())) <= self.config.kv_capacity_tokens
        self.in_flight[plan.step_id] = plan

    def answer(self, step_id: int) -> StepResult:
        """Finish a step."""
        plan = self.in_flight.pop(step_id)
        return StepResult(
            step_id=step_id,
            samples=tuple(
                SampledToken(
                    sequence_id=s.sequence_id,
                    position=s.start + s.num_tokens,
                    token_id=token_at(s.sampling.seed, s.start + s.num_tokens),
                )
                for s in plan.sequences
                if s.sampling is not None
            ),
        )

    def restart(self) -> None:
        """The stages died: caches and steps in flight are gone."""
        self.caches.clear()
        self.in_flight.clear()


def run_until_idle(scheduler: Scheduler, engine: FakeEngine, max_steps: int = 1000) -> list[RequestOutput]:
    """Answer steps in the order in which they were sent until none is left; return all outputs."""
    outputs = scheduler.drain_outputs()
    for _ in range(max_steps):
        while (plan := scheduler.schedule()) is not None:
            engine.accept(plan)
        if not engine.in_flight:
            assert not scheduler.has_unfinished, "idle with unfinished requests"
            scheduler.check_integrity()
            return outputs
        outputs += scheduler.update(engine.answer(min(engine.in_flight)))
    raise AssertionError(f"not idle after {max_steps} steps")


def tokens_of(outputs: list[RequestOutput], name: str) -> list[int]:
    """All tokens that were delivered to one request, in order."""
    return [token for output in outputs if output.request_id == name for token in output.token_ids]


def end_of(outputs: list[RequestOutput], name: str) -> RequestOutput:
    """The one output that ends the request."""
    (end,) = (o for o in outputs if o.request_id == name and o.finish_reason is not None)
    return end
