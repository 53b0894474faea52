"""Stages in memory: they keep, per sequence, the tokens that steps brought, and sample like the real ones.

The token at a position is a function of the request and the position alone, so a test knows what every request
must get, whatever the batches, the chunks, the reuse and the failures on the way. A request is known by its seed:
give each its own (`make_request` does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from butterfly.scheduling import SchedulerConfig
from butterfly.specs import (
    Adoption,
    KeptSequence,
    LayerRange,
    Request,
    SampledToken,
    SamplingContext,
    ScoredTokens,
    SequenceStep,
    StageTiming,
    StepPlan,
    StepResult,
    TokenLogprobs,
)

StageCost = tuple[float, float]
"""Seconds of a step on one stage: (of any step, of each token more)"""


def token_at(seed: int, position: int) -> int:
    """The token that any engine here samples for this seed at this position, unless it is banned."""
    return (seed * 31 + position * 7) % 97


def token_of(request: Request, position: int) -> int:
    """The output token at `position`, counted from the start of the prompt."""
    token = token_at(request.sampling.seed, position)
    while position - len(request.prompt_token_ids) < request.min_tokens and token in request.stop_token_ids:
        token += 1
    return token


def tokens_up_to(request: Request, position: int) -> list[int]:
    """Prompt and output, `position` tokens in all."""
    prompt = request.prompt_token_ids
    return [*prompt[:position], *(token_of(request, place) for place in range(len(prompt), position))]


def context_of(request: Request, position: int) -> SamplingContext | None:
    """What a step must say to the sampler of the token at `position`."""
    num_prompt = len(request.prompt_token_ids)
    banned = request.stop_token_ids if position - num_prompt < request.min_tokens else ()
    counts: Mapping[int, int] = {}
    prompt: Sequence[int] = ()
    if request.sampling.has_penalties:
        counts = Counter(tokens_up_to(request, position)[num_prompt:])
    if request.sampling.repetition_penalty != 1.0:
        prompt = sorted(set(request.prompt_token_ids))
    context = SamplingContext(
        output_counts=tuple(counts.items()), prompt_token_ids=tuple(prompt), banned_token_ids=banned
    )
    return None if context == SamplingContext() else context


def logprobs_of(token_id: int, position: int, num_top: int) -> TokenLogprobs:
    """What any engine here reports of a token at a position."""
    return TokenLogprobs(token_id=token_id, logprob=-position / 8, top=((token_id, -position / 8),) * num_top)


@dataclass
class FakeEngine:
    """Runs steps in order and asserts that each is one that a real stage could run."""

    config: SchedulerConfig
    stage_costs: Sequence[StageCost] = ()  # no stage, no timings
    requests: dict[int, Request] = field(default_factory=dict)  # by seed
    caches: dict[int, list[int]] = field(default_factory=dict)  # tokens in the KV cache, by sequence id
    in_flight: dict[int, StepPlan] = field(default_factory=dict)  # by step id, oldest first
    adoptions: list[Adoption] = field(default_factory=list)  # all that ever were
    num_computed_tokens: int = 0  # in all steps
    max_chunks_in_flight: int = 0  # of one sequence
    _prompt_lengths: dict[int, int] = field(default_factory=dict)
    _adopted_lengths: dict[int, int] = field(default_factory=dict)
    _scored: dict[int, dict[int, int]] = field(default_factory=dict)  # what steps said of tokens yet to come
    _met: set[int] = field(default_factory=set)
    _gone: set[int] = field(default_factory=set)  # released or adopted away
    _last_step_id: int = 0
    refill: LayerRange | None = None  # what the last move lost
    _stale: dict[int, int] = field(default_factory=dict)  # tokens that some layers have not yet, by sequence id

    @property
    def num_blocks(self) -> int:
        """Blocks that the caches fill, each sequence rounded up."""
        return sum(-(-len(cache) // self.config.block_size) for cache in self.caches.values())

    def expect(self, request: Request) -> None:
        """Make a request known: what it samples is checked against it."""
        other = self.requests.setdefault(request.sampling.seed, request)
        assert other == request, "two requests with one seed"

    def accept(self, plan: StepPlan) -> None:
        """Take a step over: release, adopt, then check every sequence in it."""
        assert plan.step_id > self._last_step_id, "steps are numbered in order"
        self._last_step_id = plan.step_id
        assert plan.slot not in {step.slot for step in self.in_flight.values()}, "two steps in one slot"
        assert 0 <= plan.slot < self.config.max_steps_in_flight
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert plan.sequences or plan.released or plan.adopted, "a step about nothing"
        for sequence_id in plan.released:
            self._lose(sequence_id)
            self.caches.pop(sequence_id, None)  # a stage that started afresh does not hold it
        for adoption in plan.adopted:
            self._adopt(adoption)
        ids = [part.sequence_id for part in plan.sequences]
        assert len(set(ids)) == len(ids), "a sequence is twice in a step"
        assert len(ids) <= self.config.max_num_sequences
        assert plan.refill in (None, self.refill)
        for part in plan.sequences:
            if plan.refill is not None:
                self._refill(part)
                continue
            assert not self._stale.get(part.sequence_id), "some layers have not its beginning"
            self._check_flight(part)
            self._extend(part)
        assert self.num_blocks <= self.config.num_blocks, "more tokens than the KV cache holds"
        self.in_flight[plan.step_id] = plan

    def answer(self) -> StepResult:
        """Finish the oldest step in flight."""
        plan = self.in_flight.pop(next(iter(self.in_flight)))
        return StepResult(
            step_id=plan.step_id,
            samples=tuple(self._sample(part) for part in plan.sequences if part.sampling is not None),
            scores=tuple(_score(part) for part in plan.sequences if part.scored_token_ids),
            timings=tuple(
                StageTiming(
                    worker=f"w{index}",
                    received_s=0.0,
                    started_s=0.0,
                    finished_s=base_s + per_token_s * plan.num_tokens,
                    received_bytes=0,
                )
                for index, (base_s, per_token_s) in enumerate(self.stage_costs)
            ),
        )

    def restart(self) -> None:
        """The stages died: caches and steps in flight are gone."""
        self.caches.clear()
        self._stale.clear()
        self.in_flight.clear()

    def move(self, kept: Sequence[KeptSequence], refill: LayerRange) -> None:
        """Some stages died: these sequences stay, and the others of what they held are gone."""
        lengths = {sequence.sequence_id: sequence.num_tokens for sequence in kept}
        assert lengths.keys() <= self.caches.keys() - self._gone, "a sequence that no stage has is to be kept"
        assert all(0 < length <= len(self.caches[name]) for name, length in lengths.items())
        self.caches = {name: self.caches[name][:length] for name, length in lengths.items()}
        self._stale, self.refill = dict(lengths), refill
        self.in_flight.clear()
        self._scored.clear()

    # ------------------------------------------------------------------------------ the insides

    def _refill(self, part: SequenceStep) -> None:
        assert part.sequence_id not in self._gone
        cache = self.caches[part.sequence_id]
        assert part.start == len(cache) - self._stale[part.sequence_id], "not the next position"
        assert list(part.token_ids) == cache[part.start : part.start + part.num_tokens]
        assert 0 < part.num_tokens == len(part.token_ids)
        assert part.sampling is None
        assert not part.scored_token_ids
        self._stale[part.sequence_id] -= part.num_tokens
        self.num_computed_tokens += part.num_tokens

    def _lose(self, sequence_id: int) -> None:
        assert sequence_id in self._met, "given up before any step carried it"
        assert sequence_id not in self._gone, "given up twice"
        assert not self._flights(sequence_id), "given up while it is computed"
        self._gone.add(sequence_id)

    def _adopt(self, adoption: Adoption) -> None:
        assert adoption.sequence_id not in self._met, "a sequence that has begun adopts another"
        assert 0 < adoption.num_tokens <= len(self.caches.get(adoption.source_id, ())), "the source is not there"
        assert self.config.prefix_reuse != "off"
        if self.config.prefix_reuse == "prompt":  # a source that only adopted so far has nothing else
            num_read = self._prompt_lengths.get(adoption.source_id, adoption.num_tokens)
            assert adoption.num_tokens <= num_read, "what was generated is reused"
        assert not self._stale.get(adoption.source_id), "some layers of the source have nothing yet"
        tokens = self.caches[adoption.source_id][: adoption.num_tokens]
        if not adoption.keeps_source:
            self._lose(adoption.source_id)
            del self.caches[adoption.source_id]
        self._met.add(adoption.sequence_id)
        self.caches[adoption.sequence_id] = tokens
        self.adoptions.append(adoption)
        self._adopted_lengths[adoption.sequence_id] = adoption.num_tokens
        assert self.num_blocks <= self.config.num_blocks, "a copy for which there is no room"

    def _flights(self, sequence_id: int) -> list[SequenceStep]:
        return [part for step in self.in_flight.values() for part in step.sequences if part.sequence_id == sequence_id]

    def _check_flight(self, part: SequenceStep) -> None:
        flights = self._flights(part.sequence_id)
        assert all(other.sampling is None for other in flights), "the token before it is not sampled yet"
        self.max_chunks_in_flight = max(self.max_chunks_in_flight, len(flights) + 1)

    def _extend(self, part: SequenceStep) -> None:
        sequence_id = part.sequence_id
        assert sequence_id not in self._gone, "a sequence that was given up runs"
        self._met.add(sequence_id)
        cache = self.caches.setdefault(sequence_id, [])
        assert part.prompt_length == self._prompt_lengths.setdefault(sequence_id, part.prompt_length)
        assert part.start == len(cache), "not the next position"
        if self.config.prefix_reuse == "prompt":
            assert self._adopted_lengths.get(sequence_id, 0) <= part.prompt_length, "a prompt stands for an output"
        assert part.num_tokens == len(part.token_ids) > 0
        cache.extend(part.token_ids)
        self.num_computed_tokens += part.num_tokens
        self._check_scored(part)
        if part.sampling is None:
            assert part.context is None
            return
        request, end = self.requests[part.sampling.seed], len(cache)
        assert part.sampling == request.sampling
        assert part.prompt_length == len(request.prompt_token_ids) <= end
        assert cache == tokens_up_to(request, end), "it computed, or adopted, something else"
        assert _without_mask(part.context) == context_of(request, end)
        assert request.num_prompt_logprobs is None or sequence_id not in self._adopted_lengths

    def _check_scored(self, part: SequenceStep) -> None:
        coming = self._scored.setdefault(part.sequence_id, {})
        for position, token in enumerate(part.token_ids, part.start):
            assert coming.pop(position, token) == token, "another token was scored"
        count = len(part.scored_token_ids)
        assert count in (0, min(part.num_tokens, part.prompt_length - part.start - 1))
        assert part.scored_token_ids[: part.num_tokens - 1] == part.token_ids[1 : count + 1]
        if count == part.num_tokens:
            coming[part.start + count] = part.scored_token_ids[-1]

    def _sample(self, part: SequenceStep) -> SampledToken:
        assert part.sampling is not None
        position = part.start + part.num_tokens
        token, num_top = token_of(self.requests[part.sampling.seed], position), part.sampling.num_logprobs
        logprobs = None if num_top is None else logprobs_of(token, position, num_top)
        return SampledToken(sequence_id=part.sequence_id, position=position, token_id=token, logprobs=logprobs)


def _without_mask(context: SamplingContext | None) -> SamplingContext | None:
    """A mask depends on a matcher that is not the engine's to know."""
    rest = replace(context or SamplingContext(), mask=b"")
    return None if rest == SamplingContext() else rest


def _score(part: SequenceStep) -> ScoredTokens:
    first = part.start + 1
    return ScoredTokens(
        sequence_id=part.sequence_id,
        start=first,
        logprobs=tuple(
            logprobs_of(token, position, part.num_scored_top)
            for position, token in enumerate(part.scored_token_ids, first)
        ),
    )
