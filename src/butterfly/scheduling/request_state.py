"""What the scheduler remembers of a request, and of one admission of it.

    add()            admission               update() ... update()
  ---------> waiting ---------> running (a Sequence) ---------------> finished
                ^                      |
                +----- preemption -----+   the Sequence is dropped, the tokens stay

A request outlives its sequences: `RequestState` holds its tokens, `Sequence` what is bound to the KV
cache of one admission. So preemption and recovery cannot forget to reset a counter: they drop the object.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from butterfly.errors import RequestFailedError
from butterfly.specs import (
    FinishReason,
    Request,
    RequestOutput,
    SampledToken,
    SamplingContext,
    ScoredTokens,
    SequenceStep,
    TokenLogprobs,
)


class TokenMatcher(Protocol):
    """Says which tokens may follow. It knows tokens, not KV cache: preemption does not touch it."""

    def mask(self) -> bytes:
        """Return the mask of the next position, as `SamplingContext.mask` wants it. Raises RequestFailedError."""

    def accept(self, token_id: int) -> None:
        """Take in the next token of the output. Raises RequestFailedError for one that may not follow."""


@dataclass(eq=False, slots=True)
class RequestState:
    """An unfinished request: its tokens so far, and how far it may go."""

    request: Request
    max_tokens: int  # the request's own, clipped to the context
    arrival_order: int  # 0, 1, 2, ... in the order of add(); kept for life
    arrived_s: float  # on the caller's clock
    matcher: TokenMatcher | None = None
    mask: bytes = b""  # of the next position
    tokens: list[int] = field(default_factory=list)  # prompt and output
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # that the first admission found in the KV cache
    num_charged_tokens: int = 0  # that its tenant has paid for: computing or sampling one again is free
    was_admitted: bool = False
    is_returning: bool = False  # it ran when the stages were lost, and has no new token since
    output_counts: Counter[int] = field(default_factory=Counter)  # kept only with penalties
    penalised_prompt_ids: tuple[int, ...] = ()  # each once; filled only with a repetition penalty
    prompt_logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)  # by position

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_token_ids)
        if self.request.sampling.repetition_penalty != 1.0:  # sorted once, not at every token
            self.penalised_prompt_ids = tuple(sorted(set(self.request.prompt_token_ids)))
        if self.matcher is not None:
            self.mask = self.matcher.mask()

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def deadline_s(self) -> float:
        timeout_s = self.request.timeout_s
        return float("inf") if timeout_s is None else self.arrived_s + timeout_s

    def append(self, sample: SampledToken) -> RequestOutput:
        """Add a sampled token, end the request if it is the last one, and say so."""
        self.tokens.append(sample.token_id)
        self.is_returning = False
        if self.request.sampling.has_penalties:
            self.output_counts[sample.token_id] += 1
        if sample.token_id in self.request.stop_token_ids:
            self.finish_reason = "stop"
        elif self.num_output_tokens >= self.max_tokens:
            self.finish_reason = "length"
        error = self._advance_matcher(sample.token_id)
        return self._output(sample, error)

    def _advance_matcher(self, token_id: int) -> str:
        """Return why no token may follow, though the request has not ended; "" when all is well."""
        if self.matcher is None:
            return ""
        try:
            self.matcher.accept(token_id)
            if self.finish_reason is None:
                self.mask = self.matcher.mask()
        except RequestFailedError as error:
            self.finish_reason = "error"
            return str(error)
        return ""

    def finish(self, reason: FinishReason, error: str = "", *, timed_out: bool = False) -> RequestOutput:
        """End the request without a new token."""
        self.finish_reason = reason
        return self._output(None, error, timed_out)

    def add_scores(self, scores: ScoredTokens) -> None:
        """Remember the logprobs of prompt tokens until the first output takes them along."""
        self.prompt_logprobs.update(enumerate(scores.logprobs, scores.start))

    def sampling_context(self) -> SamplingContext | None:
        """What the stage with the sampler must know of the tokens so far; None when it needs nothing."""
        request = self.request
        context = SamplingContext(
            output_counts=tuple(self.output_counts.items()),
            prompt_token_ids=self.penalised_prompt_ids,
            banned_token_ids=request.stop_token_ids if self.num_output_tokens < request.min_tokens else (),
            mask=self.mask,
        )
        return None if context == SamplingContext() else context

    def _output(self, sample: SampledToken | None, error: str = "", timed_out: bool = False) -> RequestOutput:
        is_first = sample is not None and self.num_output_tokens == 1
        logprobs = sample.logprobs if sample is not None else None
        return RequestOutput(
            request_id=self.request.request_id,
            token_ids=() if sample is None else (sample.token_id,),
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            finish_reason=self.finish_reason,
            error=error,
            timed_out=timed_out,
            num_cached_tokens=self.num_cached_tokens,
            logprobs=() if logprobs is None else (logprobs,),
            prompt_logprobs=tuple(self.prompt_logprobs[key] for key in sorted(self.prompt_logprobs))
            if is_first
            else (),
        )


@dataclass(eq=False, slots=True)
class Sequence:
    """One admission of a request: the owner of KV blocks."""

    sequence_id: int  # never used twice, so a late message cannot be taken for another admission
    state: RequestState
    num_computed_tokens: int = 0  # catches up with state.num_tokens
    num_in_flight_tokens: int = 0  # in the steps that are under way: several, while it is prefilled
    known_to_stages: bool = False  # some step carries it, so the stages must be told of its end
    ready_order: int = 0  # of its last result: decode steps take turns in this order
    num_refill_tokens: int = 0  # cached before a move, and to be computed once more in the layers that were lost
    num_refilled_tokens: int = 0
    num_refill_in_flight: int = 0

    @property
    def num_scheduled_tokens(self) -> int:
        return self.num_computed_tokens + self.num_in_flight_tokens

    @property
    def num_unscheduled_tokens(self) -> int:
        return self.state.num_tokens - self.num_scheduled_tokens

    @property
    def is_in_flight(self) -> bool:
        return self.num_in_flight_tokens > 0 or self.num_refill_in_flight > 0

    @property
    def is_refilling(self) -> bool:
        """Not all of its layers have what it computed before the last move."""
        return self.num_refilled_tokens < self.num_refill_tokens

    @property
    def num_unscheduled_refill_tokens(self) -> int:
        return self.num_refill_tokens - self.num_refilled_tokens - self.num_refill_in_flight

    @property
    def is_decoding(self) -> bool:
        """Only its newest token is missing in the KV cache (or under way), and that is an output token."""
        num_missing = self.state.num_tokens - self.num_computed_tokens
        return num_missing <= 1 and self.state.num_output_tokens > 0 and not self.num_unscheduled_refill_tokens

    @property
    def is_schedulable(self) -> bool:
        """False for an aborted sequence that only waits for its steps to return, and for one that is to be refilled.

        A stage computes steps in the order of sending: what goes on from a refill need not wait for its return.
        """
        is_ready = self.state.finish_reason is None and not self.num_unscheduled_refill_tokens
        return is_ready and self.num_unscheduled_tokens > 0

    def start_step(self, num_tokens: int) -> SequenceStep:
        """Put the next `num_tokens` tokens in flight; sample if the last known one is among them."""
        state, request = self.state, self.state.request
        start, end = self.num_scheduled_tokens, self.num_scheduled_tokens + num_tokens
        self.num_in_flight_tokens += num_tokens
        self.known_to_stages = True
        is_sampled = end == state.num_tokens
        scored = request.num_prompt_logprobs is not None and len(state.prompt_logprobs) < state.num_prompt_tokens - 1
        return SequenceStep(
            sequence_id=self.sequence_id,
            start=start,
            num_tokens=num_tokens,
            prompt_length=state.num_prompt_tokens,
            token_ids=tuple(state.tokens[start:end]),
            sampling=request.sampling if is_sampled else None,
            context=state.sampling_context() if is_sampled else None,
            scored_token_ids=request.prompt_token_ids[start + 1 : end + 1] if scored else (),
            num_scored_top=(request.num_prompt_logprobs or 0) if scored else 0,
        )

    def finish_step(self, num_tokens: int) -> None:
        """A step came back: its tokens are in the KV cache of every stage."""
        self.num_computed_tokens += num_tokens
        self.num_in_flight_tokens -= num_tokens

    def hold(self) -> None:
        """The steps under way are lost, and with them the KV cache of some layers."""
        self.num_refill_tokens, self.num_refilled_tokens = self.num_computed_tokens, 0
        self.num_in_flight_tokens = self.num_refill_in_flight = 0

    def start_refill(self, num_tokens: int) -> SequenceStep:
        """Put the next `num_tokens` cached tokens in flight once more."""
        state = self.state
        start = self.num_refilled_tokens + self.num_refill_in_flight
        self.num_refill_in_flight += num_tokens
        return SequenceStep(
            sequence_id=self.sequence_id,
            start=start,
            num_tokens=num_tokens,
            prompt_length=state.num_prompt_tokens,
            token_ids=tuple(state.tokens[start : start + num_tokens]),
        )

    def finish_refill(self, num_tokens: int) -> None:
        self.num_refilled_tokens += num_tokens
        self.num_refill_in_flight -= num_tokens
