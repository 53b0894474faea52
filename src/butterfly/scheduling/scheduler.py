"""The scheduler: which tokens of which sequences go into the next step. See the package docstring."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from butterfly.errors import ContextLengthError, InvalidRequestError, OverloadedError, ProtocolError
from butterfly.scheduling import policy
from butterfly.scheduling.config import SchedulerConfig
from butterfly.scheduling.kv_blocks import BlockPool, require
from butterfly.scheduling.request_state import RequestState, Sequence
from butterfly.specs import Request, RequestOutput, SampledToken, StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    plan: StepPlan
    sequences: tuple[Sequence, ...]


class Scheduler:
    """First come first served continuous batching with chunked prefill over `num_slots` slots.

    `schedule()` until it returns None, send what it gave, `update()` with what comes back, in any order.
    """

    def __init__(
        self, config: SchedulerConfig, admission_key: policy.AdmissionKey = policy.first_come_first_served
    ) -> None:
        self._config = config
        self._admission_key = admission_key
        self._pool = BlockPool(config.num_blocks, config.block_size)
        self._unfinished: dict[str, RequestState] = {}  # waiting and running, by request id
        self._waiting: list[RequestState] = []  # sorted by the admission key
        self._slots: list[dict[int, Sequence]] = [{} for _ in range(config.num_slots)]  # by sequence id
        self._in_flight: dict[int, _InFlightStep] = {}  # by slot
        self._released: list[int] = []  # sequence ids that the stages have still to hear of
        self._outputs: list[RequestOutput] = []  # ends that no step brought, see drain_outputs
        self._num_arrivals = 0
        self._next_sequence_id = 1
        self._next_step_id = 1
        self._next_slot = 0  # where to look for work first: slots take turns

    # ------------------------------------------------------------------------------- questions

    @property
    def num_running(self) -> int:
        """Unfinished requests that hold KV cache."""
        return len(self._unfinished) - len(self._waiting)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        return sum(state.num_tokens for state in self._waiting)

    @property
    def has_unfinished(self) -> bool:
        """Some request has not ended. Releases alone do not count, though `schedule()` may carry them."""
        return bool(self._unfinished)

    # ---------------------------------------------------------------------------------- requests

    def add(self, request: Request, now_s: float) -> None:
        """Queue a request; max_tokens is clipped to what the context leaves after the prompt.

        Raises InvalidRequestError (empty prompt, max_tokens < 1, an id that is in use),
        ContextLengthError (could never run) or OverloadedError (the queue is full). A request that
        raises is forgotten. An empty queue takes a prompt of any length, so that none is refused for ever.
        """
        self._refuse_malformed(request)
        max_tokens = self._clip_max_tokens(request)
        self._refuse_overload(request)
        state = RequestState(request, max_tokens, self._num_arrivals, now_s)
        self._num_arrivals += 1
        self._unfinished[request.request_id] = state
        insort(self._waiting, state, key=self._admission_key)

    def abort(self, request_id: str) -> None:
        """End a request at once with `abort`; its last output comes from `drain_outputs()`.

        A result that is still on its way is ignored, and its KV cache released after it. An unknown or
        finished id is no error: the client left as its last token came.
        """
        state = self._unfinished.get(request_id)
        if state is None:
            return
        self._outputs.append(self._book(state.finish("abort")))
        for sequence in self._sequences():
            if sequence.state is state and sequence.num_in_flight_tokens == 0:
                self._drop(sequence)

    def drain_outputs(self) -> list[RequestOutput]:
        """Return the outputs of aborted requests, once each. `update()` never returns them.

        Call it after `abort()`: it waits for no step.
        """
        outputs, self._outputs = self._outputs, []
        return outputs

    # ------------------------------------------------------------------------------------- steps

    def schedule(self) -> StepPlan | None:
        """Return the next step to send, or None while there is nothing to do or no slot is free."""
        self._admit()
        for offset in range(self._config.num_slots):
            slot = (self._next_slot + offset) % self._config.num_slots
            if slot in self._in_flight:
                continue
            batch = policy.fill_batch(self._slots[slot].values(), self._config.max_num_batched_tokens)
            if batch:
                self._next_slot = (slot + 1) % self._config.num_slots
                return self._start_step(slot, batch)
        if self._released and not self._in_flight:
            return self._start_step(self._next_slot, [])  # nothing else will run to carry the releases
        return None

    def update(self, result: StepResult) -> list[RequestOutput]:
        """Take in what a step sampled and return what that added to each request, in batch order.

        A step that was forgotten (failed, requeued) or is already done changes nothing. Raises
        ProtocolError, changing nothing, when the samples are not exactly those that the step asked for.
        """
        step = self._find_step(result.step_id)
        if step is None:
            return []
        samples = _match_samples(step.plan, result)
        del self._in_flight[step.plan.slot]
        outputs = []
        for sequence in step.sequences:
            sequence.finish_step()
            state, sample = sequence.state, samples.get(sequence.sequence_id)
            if sample is not None and state.finish_reason is None:
                outputs.append(self._book(state.append(sample.token_id)))
            if state.finish_reason is not None:
                self._drop(sequence)
        return outputs

    # ---------------------------------------------------------------------------------- failures

    def fail_step(self, step_id: int, reason: str) -> list[RequestOutput]:
        """End every request of a step with an error; a step that is no longer in flight changes nothing."""
        step = self._find_step(step_id)
        if step is None:
            return []
        del self._in_flight[step.plan.slot]
        outputs = []
        for sequence in step.sequences:
            state = sequence.state
            if state.finish_reason is None:
                outputs.append(self._book(state.finish("error", reason)))
            self._drop(sequence)
        return outputs

    def fail_all(self, reason: str) -> list[RequestOutput]:
        """End every unfinished request with an error and forget the steps in flight."""
        states = list(self._unfinished.values())
        outputs = [self._book(state.finish("error", reason)) for state in states]
        self._forget_admissions()
        return outputs

    def requeue_all(self) -> None:
        """Recovery is preemption: forget steps and KV cache, keep the tokens, let prefill rebuild the rest.

        Requests return to their place in line and get a new sequence id when admitted again. The old ids
        are announced as released like any other; a stage that starts afresh ignores those it never met.
        """
        running = [seq.state for seq in self._sequences() if seq.state.finish_reason is None]
        self._forget_admissions()
        for state in running:
            insort(self._waiting, state, key=self._admission_key)

    def check_integrity(self) -> None:
        """Raise InvariantError unless the books balance: blocks, slots, steps and requests."""
        sequences = self._sequences()
        self._pool.check(sequence.sequence_id for sequence in sequences)
        states = [sequence.state for sequence in sequences if sequence.state.finish_reason is None]
        held = sorted(state.request.request_id for state in [*states, *self._waiting])
        require(held == sorted(self._unfinished), "an unfinished request must wait or be admitted, once")
        flying = {seq.sequence_id for step in self._in_flight.values() for seq in step.sequences}
        for sequence in sequences:
            name = f"sequence {sequence.sequence_id}"
            in_flight = sequence.num_in_flight_tokens > 0
            require(in_flight == (sequence.sequence_id in flying), f"{name} and its step disagree")
            require(in_flight or sequence.state.finish_reason is None, f"{name} outlives its request")
            require(sequence.num_remaining_tokens > 0, f"{name} has nothing left to compute")
        require(len(set(self._released)) == len(self._released), "a sequence is released twice")
        require(flying <= {seq.sequence_id for seq in sequences}, "a step in flight has lost a sequence")

    # ---------------------------------------------------------------------------------- the insides

    def _refuse_malformed(self, request: Request) -> None:
        name = request.request_id
        if not request.prompt_token_ids:
            raise InvalidRequestError("the prompt has no tokens", "prompt", name)
        if request.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1, not {request.max_tokens}", "max_tokens", name)
        if name in self._unfinished:
            raise InvalidRequestError(f"request id {name!r} is in use by a running request", "", name)

    def _clip_max_tokens(self, request: Request) -> int:
        """Return how many tokens the request may generate, or raise ContextLengthError."""
        num_prompt, max_context = len(request.prompt_token_ids), self._config.max_context
        if num_prompt + 1 > max_context:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens, but the context of {max_context} tokens "
                f"must hold it and at least one more",
                "prompt",
                request.request_id,
            )
        max_tokens = min(request.max_tokens, max_context - num_prompt)
        capacity = self._config.num_blocks * self._config.block_size
        if num_prompt + max_tokens > capacity:
            raise ContextLengthError(
                f"prompt of {num_prompt} + max_tokens {max_tokens} = {num_prompt + max_tokens} tokens "
                f"can never fit the KV cache of {capacity} tokens",
                "prompt" if num_prompt + 1 > capacity else "max_tokens",
                request.request_id,
            )
        return max_tokens

    def _refuse_overload(self, request: Request) -> None:
        waiting, limit = self.num_waiting_tokens, self._config.max_waiting_tokens
        if self._waiting and waiting + len(request.prompt_token_ids) > limit:
            raise OverloadedError(
                f"{len(self._waiting)} requests with {waiting} tokens wait and the queue holds {limit}; "
                f"try again in {self._config.retry_after_s:g} s",
                self._config.retry_after_s,
                request.request_id,
            )

    def _admit(self) -> None:
        """Admit from the front of the line while there is room; nobody overtakes."""
        num_admitted = len(self._sequences())
        while self._waiting and num_admitted < self._config.max_num_sequences:
            state = self._waiting[0]
            if not self._pool.can_reserve(state.num_reserved_tokens):
                return
            del self._waiting[0]
            slot = policy.least_loaded_slot([slot.values() for slot in self._slots])
            sequence = Sequence(self._next_sequence_id, slot, state)
            self._pool.reserve(sequence.sequence_id, state.num_reserved_tokens)
            self._slots[slot][sequence.sequence_id] = sequence
            self._next_sequence_id += 1
            num_admitted += 1

    def _start_step(self, slot: int, batch: list[tuple[Sequence, int]]) -> StepPlan:
        plan = StepPlan(
            step_id=self._next_step_id,
            slot=slot,
            sequences=tuple(sequence.start_step(num_tokens) for sequence, num_tokens in batch),
            released=tuple(self._released),
        )
        self._released.clear()
        self._next_step_id += 1
        self._in_flight[slot] = _InFlightStep(plan, tuple(sequence for sequence, _ in batch))
        return plan

    def _find_step(self, step_id: int) -> _InFlightStep | None:
        """Return the step in flight, None for one of the past; a step of the future is an error."""
        if not 0 < step_id < self._next_step_id:
            raise ProtocolError(f"step {step_id} was never sent; the last one was {self._next_step_id - 1}")
        return next((step for step in self._in_flight.values() if step.plan.step_id == step_id), None)

    def _book(self, output: RequestOutput) -> RequestOutput:
        """Strike a request that `output` ends off the books."""
        if output.finish_reason is not None:
            state = self._unfinished.pop(output.request_id)
            if state in self._waiting:
                self._waiting.remove(state)
        return output

    def _drop(self, sequence: Sequence) -> None:
        """Take back what an admission holds; the stages hear of it with the next step."""
        del self._slots[sequence.slot][sequence.sequence_id]
        self._pool.release(sequence.sequence_id)
        if sequence.known_to_stages:
            self._released.append(sequence.sequence_id)

    def _forget_admissions(self) -> None:
        self._in_flight.clear()
        for sequence in self._sequences():
            self._drop(sequence)

    def _sequences(self) -> list[Sequence]:
        return [sequence for slot in self._slots for sequence in slot.values()]


def _match_samples(plan: StepPlan, result: StepResult) -> dict[int, SampledToken]:
    """Return the samples by sequence id. Raises ProtocolError unless they are what `plan` asks for."""
    wanted = sorted((s.sequence_id, s.start + s.num_tokens) for s in plan.sequences if s.sampling is not None)
    got = sorted((sample.sequence_id, sample.position) for sample in result.samples)
    if wanted != got:
        raise ProtocolError(f"step {plan.step_id} wants samples for (sequence, position) {wanted} but brought {got}")
    return {sample.sequence_id: sample for sample in result.samples}
