"""What the scheduler remembers of a request, and of one admission of it.

    add()            admission               update() ... update()
  ---------> waiting ---------> running (a Sequence) ---------------> finished
                ^                      |
                +---- requeue_all() ---+   the Sequence is dropped, the tokens stay

A request outlives its sequences: `RequestState` holds its tokens, `Sequence` what is bound to the KV
cache of one admission. So preemption and recovery cannot forget to reset a counter: they drop the object.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from butterfly.specs import FinishReason, Request, RequestOutput, SequenceStep


@dataclass(eq=False, slots=True)
class RequestState:
    """An unfinished request: its tokens so far, and how far it may go."""

    request: Request
    max_tokens: int  # the request's own, clipped to the context
    arrival_order: int  # 0, 1, 2, ... in the order of add(); kept for life
    arrived_s: float  # on the caller's clock
    tokens: list[int] = field(default_factory=list)  # prompt and output
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_token_ids)

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
    def num_reserved_tokens(self) -> int:
        """Tokens of KV cache that an admission reserves: nothing is preempted for want of room."""
        return self.num_prompt_tokens + self.max_tokens

    def append(self, token_id: int) -> RequestOutput:
        """Add a sampled token, end the request if it is the last one, and say so."""
        self.tokens.append(token_id)
        if token_id in self.request.stop_token_ids:
            self.finish_reason = "stop"
        elif self.num_output_tokens >= self.max_tokens:
            self.finish_reason = "length"
        return self._output((token_id,))

    def finish(self, reason: FinishReason, error: str = "") -> RequestOutput:
        """End the request without a new token."""
        self.finish_reason = reason
        return self._output((), error)

    def _output(self, token_ids: tuple[int, ...], error: str = "") -> RequestOutput:
        return RequestOutput(
            request_id=self.request.request_id,
            token_ids=token_ids,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            finish_reason=self.finish_reason,
            error=error,
        )


@dataclass(eq=False, slots=True)
class Sequence:
    """One admission of a request: the owner of KV blocks, living in one slot."""

    sequence_id: int  # never used twice, so a late message cannot be taken for another admission
    slot: int
    state: RequestState
    num_computed_tokens: int = 0  # catches up with state.num_tokens
    num_in_flight_tokens: int = 0  # in the step that is under way, if any
    known_to_stages: bool = False  # some step carried it, so the stages must be told of its end

    @property
    def num_remaining_tokens(self) -> int:
        return self.state.num_tokens - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Only its newest token is missing in the KV cache, and that token is an output token."""
        return self.num_remaining_tokens == 1 and self.state.num_output_tokens > 0

    @property
    def is_schedulable(self) -> bool:
        """False for an aborted sequence that only waits for its step to return."""
        return self.state.finish_reason is None and self.num_in_flight_tokens == 0

    def start_step(self, num_tokens: int) -> SequenceStep:
        """Put the next `num_tokens` tokens in flight; sample if the last known one is among them."""
        start, end = self.num_computed_tokens, self.num_computed_tokens + num_tokens
        self.num_in_flight_tokens = num_tokens
        self.known_to_stages = True
        return SequenceStep(
            sequence_id=self.sequence_id,
            start=start,
            num_tokens=num_tokens,
            prompt_length=self.state.num_prompt_tokens,
            token_ids=tuple(self.state.tokens[start:end]),
            sampling=self.state.request.sampling if end == self.state.num_tokens else None,
        )

    def finish_step(self) -> None:
        """The step in flight came back: its tokens are in the KV cache of every stage."""
        self.num_computed_tokens += self.num_in_flight_tokens
        self.num_in_flight_tokens = 0
