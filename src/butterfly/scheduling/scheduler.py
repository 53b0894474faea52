"""The scheduler: which tokens of which sequences go into the next step. See the package docstring."""

from __future__ import annotations

from dataclasses import dataclass

from butterfly.errors import InvalidRequestError, ProtocolError
from butterfly.scheduling import policy
from butterfly.scheduling.acceptance import clip_max_tokens, refuse_malformed, refuse_overload
from butterfly.scheduling.config import SchedulerConfig
from butterfly.scheduling.kv_blocks import require
from butterfly.scheduling.matching import match_samples, match_scores
from butterfly.scheduling.request_state import RequestState, Sequence, TokenMatcher
from butterfly.scheduling.running import RunningSequences
from butterfly.scheduling.stage_times import StageTimes
from butterfly.scheduling.waiting import ServedTokens, WaitingLine
from butterfly.specs import (
    FinishReason,
    KeptSequence,
    LayerRange,
    Request,
    RequestOutput,
    SequenceStep,
    Spec,
    StepPlan,
    StepResult,
)

_SHORTEST_REFILL = 4  # of a chunk, where a sequence ends: a step has a fixed cost


class SchedulerCounts(Spec, frozen=True):
    """Where everything is. used + kept + free tokens of KV cache are all there are."""

    num_running: int
    num_waiting: int
    used_tokens: int
    kept_tokens: int
    free_tokens: int
    num_preemptions: int  # since the start


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    plan: StepPlan
    sequences: tuple[Sequence, ...]


class Scheduler:
    """Continuous batching over `num_slots` alternating batches, with chunked prefill and prefix reuse.

    `schedule()` until it returns None, send what it gave, `update()` with what comes back.
    """

    def __init__(self, config: SchedulerConfig, admission_key: policy.AdmissionKey = policy.fair_share) -> None:
        self._config = config
        self._unfinished: dict[str, RequestState] = {}  # waiting and running, by request id
        self._served = ServedTokens()
        self._waiting = WaitingLine(admission_key, self._served)
        self._running = RunningSequences(config, self._waiting.push)
        self._times = StageTimes()
        self._in_flight: dict[int, _InFlightStep] = {}  # by slot
        self._outputs: list[RequestOutput] = []  # ends that no step brought, see drain_outputs
        self._num_arrivals = 0
        self._num_updates = 0
        self._next_step_id = 1
        self._refill: LayerRange | None = None  # which layers were lost in the last move
        self._refilled_last = False  # whether the last step was for those who were held

    # ------------------------------------------------------------------------------- questions

    @property
    def counts(self) -> SchedulerCounts:
        all_tokens = self._config.num_blocks * self._config.block_size
        kept, free = self._running.kept_tokens, self._running.free_tokens
        return SchedulerCounts(
            num_running=len(self._unfinished) - len(self._waiting),
            num_waiting=len(self._waiting),
            used_tokens=all_tokens - kept - free,
            kept_tokens=kept,
            free_tokens=free,
            num_preemptions=self._running.num_preemptions,
        )

    @property
    def refill_s(self) -> float:
        """What the slowest stage would take to compute again what running requests have in the KV cache, in seconds.

        0 when none runs, and as long as no step has been measured.
        """
        num_tokens = sum(sequence.num_computed_tokens for sequence in self._running.all())
        return num_tokens * (self._times.per_token_s or 0.0)

    @property
    def has_unfinished(self) -> bool:
        """Some request has not ended. Releases alone do not count, though `schedule()` may carry them."""
        return bool(self._unfinished)

    @property
    def is_idle(self) -> bool:
        """No request is unfinished and no step under way."""
        return not self._unfinished and not self._in_flight

    # ---------------------------------------------------------------------------------- requests

    def add(self, request: Request, now_s: float, matcher: TokenMatcher | None = None) -> None:
        """Queue a request; max_tokens is clipped to what the context leaves after the prompt.

        `matcher` says which tokens may follow which, when the request has a grammar.

        Raises InvalidRequestError (empty prompt, max_tokens < 1, an id that is in use),
        ContextLengthError (could never run) or OverloadedError (the queue is full). A request that
        raises is forgotten. An empty queue takes a prompt of any length, so that none is refused for ever.
        """
        if request.request_id in self._unfinished:
            problem = f"request id {request.request_id!r} is in use by a running request"
            raise InvalidRequestError(problem, "", request.request_id)
        refuse_malformed(request)
        max_tokens = clip_max_tokens(request, self._config)
        refuse_overload(request, self._waiting, self._times.prefill_tokens_per_s, self._config)
        state = RequestState(request, max_tokens, self._num_arrivals, now_s, matcher)
        self._num_arrivals += 1
        self._unfinished[request.request_id] = state
        self._served.enter(request.tenant)
        self._waiting.push(state)

    def abort(self, request_id: str) -> None:
        """End a request at once with `abort`; its last output comes from `drain_outputs()`.

        A result that is still on its way is ignored, and its KV cache given up after it. An unknown or
        finished id is no error: the client left as its last token came.
        """
        state = self._unfinished.get(request_id)
        if state is not None:
            self._outputs.append(self._end(state, "abort"))

    def expire(self, now_s: float) -> list[RequestOutput]:
        """End every request whose deadline has passed with an error, and return their last outputs."""
        late = [state for state in self._unfinished.values() if state.deadline_s <= now_s]
        return [
            self._end(
                state,
                "error",
                f"the request did not end within {state.request.timeout_s:g} s "
                f"({state.num_output_tokens} tokens were generated)",
                timed_out=True,
            )
            for state in late
        ]

    def drain_outputs(self) -> list[RequestOutput]:
        """Return the outputs of aborted requests, once each. `update()` never returns them.

        Call it after `abort()`: it waits for no step.
        """
        outputs, self._outputs = self._outputs, []
        return outputs

    # ------------------------------------------------------------------------------------- steps

    def schedule(self) -> StepPlan | None:
        """Return the next step to send, or None while there is nothing to do or enough is under way."""
        self._admit()
        if len(self._in_flight) < self._config.max_steps_in_flight:
            refilling = [] if self._refill is None else self._running.to_be_refilled()
            if refilling and not (self._refilled_last and self._has_readers()):
                return self._start_refill(refilling)
            batch = self._make_batch()
            if batch:
                return self._start_step(batch)
            if refilling and (still := self._running.to_be_refilled()):  # making the batch may have preempted some
                return self._start_refill(still)
        if self._running.has_news and not self._in_flight:
            return self._start_step([])  # nothing else will run to carry the releases
        return None

    def update(self, result: StepResult) -> list[RequestOutput]:
        """Take in what a step sampled and return what that added to each request, in batch order.

        A step that was forgotten (requeued) or is already done changes nothing. Raises ProtocolError,
        changing nothing, when samples or scores are not exactly those that the step asked for.
        """
        step = self._find_step(result.step_id)
        if step is None:
            return []
        samples, scores = match_samples(step.plan, result), match_scores(step.plan, result)
        del self._in_flight[step.plan.slot]
        if step.plan.refill is not None:
            self._finish_refill(step)
            return []
        if step.sequences:
            self._times.record(result.timings, step.plan.num_tokens)
        self._num_updates += 1
        outputs = []
        for sequence, part in zip(step.sequences, step.plan.sequences, strict=True):
            self._running.finish_step(sequence, part.num_tokens, self._num_updates)
            state, sample = sequence.state, samples.get(sequence.sequence_id)
            if state.finish_reason is None and (score := scores.get(sequence.sequence_id)) is not None:
                state.add_scores(score)
            if state.finish_reason is None and sample is not None:
                outputs.append(self._book(state.append(sample)))
            if state.finish_reason is not None and not sequence.is_in_flight:
                self._running.finish(sequence)
        return outputs

    # ---------------------------------------------------------------------------------- failures

    def fail_all(self, reason: str) -> list[RequestOutput]:
        """End every unfinished request with an error and forget the steps in flight."""
        states = list(self._unfinished.values())
        self._in_flight.clear()
        self._running.forget_all()
        self._waiting.clear()
        return [self._book(state.finish("error", reason)) for state in states]

    def hold(self) -> None:
        """Stages are lost: forget the steps under way. Requests keep their tokens, and what other stages have of them.

        `resume` or `fail_all` comes next; until then nothing may be scheduled.
        """
        self._in_flight.clear()
        for sequence in self._running.all():
            sequence.state.is_returning = True
        for state in self._running.hold():
            self._waiting.push(state)

    def kept_for(self, config: SchedulerConfig) -> tuple[KeptSequence, ...]:
        """What stages need to keep, of `hold`, for these sequences to go on under another plan; empty: nothing."""
        if not self._running.fits(config):
            return ()
        return tuple(
            KeptSequence(sequence_id=sequence.sequence_id, num_tokens=sequence.num_computed_tokens)
            for sequence in self._running.all()
        )

    def requeue_all(self) -> None:
        """Recovery is preemption: forget steps and KV cache, keep the tokens, let prefill rebuild the rest.

        Requests return to their place in line and get a new sequence id when admitted again. The old ids
        are announced as released like any other; a stage that starts afresh ignores those it never met.
        """
        self._in_flight.clear()
        interrupted = [seq.state for seq in self._running.all() if seq.state.finish_reason is None]
        self._running.forget_all()
        for state in interrupted:
            state.is_returning = True
            self._waiting.push(state)

    def resume(self, config: SchedulerConfig, refill: LayerRange | None = None) -> list[RequestOutput]:
        """After `hold()` or `requeue_all()`: go on under another plan.

        `refill`: the layers that have to be computed once more for what `kept_for(config)` said, while the stages have
        the others. None: the stages hold nothing yet. Returns the ends of those requests that its KV cache can never
        hold.
        """
        if refill is None:
            self.requeue_all()
            self._running.start_afresh(config)
        else:
            self._running.move(config)
        self._config, self._refill = config, refill
        self._times.start_afresh()
        capacity = config.num_blocks * config.block_size
        too_long = [
            state for state in self._unfinished.values() if state.num_prompt_tokens + state.max_tokens > capacity
        ]
        return [
            self._end(
                state,
                "error",
                f"prompt of {state.num_prompt_tokens} + max_tokens {state.max_tokens} tokens can never fit the "
                f"KV cache of {capacity} tokens that the workers have now",
            )
            for state in too_long
        ]

    def check_integrity(self) -> None:
        """Raise InvariantError unless the books balance: blocks, sequences, steps and requests."""
        self._running.check()
        sequences = self._running.all()
        states = [sequence.state for sequence in sequences if sequence.state.finish_reason is None]
        held = sorted(state.request.request_id for state in [*states, *self._waiting])
        require(held == sorted(self._unfinished), "an unfinished request must wait or run, once")
        flying: dict[int, int] = {}
        for step in self._in_flight.values():
            for part in step.plan.sequences:
                flying[part.sequence_id] = flying.get(part.sequence_id, 0) + part.num_tokens
        for sequence in sequences:
            num_in_flight = sequence.num_in_flight_tokens + sequence.num_refill_in_flight
            name = f"sequence {sequence.sequence_id}"
            require(num_in_flight == flying.get(sequence.sequence_id, 0), f"{name} and its steps disagree")
            require(num_in_flight > 0 or sequence.state.finish_reason is None, f"{name} outlives its request")
            require(sequence.num_computed_tokens < sequence.state.num_tokens, f"{name} has nothing left to compute")
        require(set(flying) <= {sequence.sequence_id for sequence in sequences}, "a step has lost a sequence")

    # ---------------------------------------------------------------------------------- the insides

    def _admit(self) -> None:
        """Admit from the front of the line while there is room; nobody overtakes."""
        self._running.yielding = None
        while (state := self._waiting.first()) is not None and self._running.admit(state):
            self._waiting.remove(state)

    def _make_batch(self) -> list[tuple[Sequence, int]]:
        """Choose sequences and how many tokens of each. Decode tokens first: readers wait for them.

        While requests decode, prompts only ride along with their steps or fill a slot that would be empty; a
        spare slot is for a whole decode batch, or for prompts when nobody reads.
        """
        running = [sequence for sequence in self._running.all() if sequence is not self._running.yielding]
        decoding = [sequence for sequence in running if sequence.is_decoding and sequence.state.finish_reason is None]
        ready = sorted((seq for seq in decoding if seq.is_schedulable), key=lambda seq: seq.ready_order)
        cap = policy.decode_cap(len(decoding), self._config.num_slots)
        is_spare = len(self._in_flight) >= self._config.num_slots
        if is_spare and decoding and len(ready) < cap:
            return []
        budget = self._config.max_num_batched_tokens
        batch: list[tuple[Sequence, int]] = []
        for sequence in ready[: min(cap, budget)]:
            self._append(batch, sequence, 1)
        prefilling = [seq for seq in running if seq.is_schedulable and not seq.is_decoding]
        self._append_chunks(batch, prefilling, budget - len(batch), num_decodes=cap if decoding else 0)
        return batch

    def _append_chunks(
        self, batch: list[tuple[Sequence, int]], prefilling: list[Sequence], budget: int, *, num_decodes: int
    ) -> None:
        """Share one chunk's worth of tokens among prompts, see `policy.prefill_order`.

        `num_decodes` is the size of a full decode batch now: what a reader's step is like. While some readers are not
        back from a recovery, the others do not hold them up: chunks are then as long as if nobody read.
        """
        if any(sequence.state.is_returning for sequence in prefilling):
            num_decodes = 0
        num_waiting = sum(sequence.num_unscheduled_tokens for sequence in prefilling)
        if not num_waiting:
            return
        chunk = self._times.chunk_tokens(
            num_waiting, self._config.num_slots, self._config.first_chunk_tokens, num_decodes=num_decodes
        )
        budget = min(budget, chunk)
        for sequence in sorted(prefilling, key=policy.prefill_order):
            if budget == 0:
                return
            num_tokens = min(budget, sequence.num_unscheduled_tokens)
            if self._append(batch, sequence, num_tokens):
                budget -= num_tokens

    def _append(self, batch: list[tuple[Sequence, int]], sequence: Sequence, num_tokens: int) -> bool:
        """Add tokens of a sequence to a batch if there is room in the KV cache for them."""
        if not self._running.holds(sequence):
            return False  # it was preempted for another one of this batch
        chosen = {other.sequence_id for other, _ in batch}
        if not self._running.make_room(sequence, sequence.num_scheduled_tokens + num_tokens, chosen):
            return False
        batch.append((sequence, num_tokens))
        return True

    def _start_step(self, batch: list[tuple[Sequence, int]]) -> StepPlan:
        for sequence, num_tokens in batch:
            self._charge(sequence, num_tokens)
        self._refilled_last = False
        parts = tuple(sequence.start_step(num_tokens) for sequence, num_tokens in batch)
        return self._send(parts, tuple(sequence for sequence, _ in batch), None)

    def _send(
        self, parts: tuple[SequenceStep, ...], sequences: tuple[Sequence, ...], refill: LayerRange | None
    ) -> StepPlan:
        released, adopted = self._running.take_news()
        plan = StepPlan(
            step_id=self._next_step_id,
            slot=next(slot for slot in range(self._config.max_steps_in_flight) if slot not in self._in_flight),
            sequences=parts,
            released=released,
            adopted=adopted,
            refill=refill,
        )
        self._next_step_id += 1
        self._in_flight[plan.slot] = _InFlightStep(plan, sequences)
        return plan

    def _has_readers(self) -> bool:
        """Whether somebody who is back could have a token now."""
        return any(sequence.is_decoding and sequence.is_schedulable for sequence in self._running.all())

    def _start_refill(self, refilling: list[Sequence]) -> StepPlan:
        """A step of cached tokens, in the layers that were lost; in the order of `policy.prefill_order`.

        It ends with a sequence where that makes it not much shorter: whoever is complete can read on.
        """
        num_waiting = sum(sequence.num_unscheduled_refill_tokens for sequence in refilling)
        chunk = self._times.chunk_tokens(
            num_waiting, self._config.num_slots, self._config.first_chunk_tokens, num_decodes=0
        )
        most = min(chunk, self._config.max_num_batched_tokens)
        batch: list[tuple[Sequence, int]] = []
        budget = most
        for sequence in sorted(refilling, key=policy.prefill_order):
            if not budget or (batch and most - budget >= most // _SHORTEST_REFILL):
                break
            num_tokens = min(budget, sequence.num_unscheduled_refill_tokens)
            batch.append((sequence, num_tokens))
            budget -= num_tokens
        self._refilled_last = True
        parts = tuple(sequence.start_refill(num_tokens) for sequence, num_tokens in batch)
        return self._send(parts, tuple(sequence for sequence, _ in batch), self._refill)

    def _finish_refill(self, step: _InFlightStep) -> None:
        for sequence, part in zip(step.sequences, step.plan.sequences, strict=True):
            self._running.finish_refill(sequence, part.num_tokens)
            if sequence.state.finish_reason is not None and not sequence.is_in_flight:
                self._running.finish(sequence)

    def _charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Let the tenant pay for prompt tokens that are computed for the first time, and for the token it will get."""
        state, end = sequence.state, sequence.num_scheduled_tokens + num_tokens
        num_paid, num_prompt = state.num_charged_tokens, state.num_prompt_tokens
        num_due = end + 1 if end == state.num_tokens else end
        state.num_charged_tokens = max(num_paid, num_due)
        num_new_prompt = max(0, min(num_due, num_prompt) - num_paid)
        num_new_output = max(0, num_due - max(num_paid, num_prompt))
        price = num_new_prompt * policy.PROMPT_WEIGHT + num_new_output * policy.OUTPUT_WEIGHT
        self._served.charge(state.request.tenant, price)

    def _find_step(self, step_id: int) -> _InFlightStep | None:
        """Return the step in flight, None for one of the past; a step of the future is an error."""
        if not 0 < step_id < self._next_step_id:
            raise ProtocolError(f"step {step_id} was never sent; the last one was {self._next_step_id - 1}")
        return next((step for step in self._in_flight.values() if step.plan.step_id == step_id), None)

    def _end(
        self, state: RequestState, reason: FinishReason, error: str = "", *, timed_out: bool = False
    ) -> RequestOutput:
        """End a request that waits or runs; a sequence in flight is given up when its steps are back."""
        sequence = self._running.of(state)
        if sequence is None:
            self._waiting.remove(state)
        output = self._book(state.finish(reason, error, timed_out=timed_out))
        if sequence is not None and not sequence.is_in_flight:
            self._running.finish(sequence)
        return output

    def _book(self, output: RequestOutput) -> RequestOutput:
        """Strike a request that `output` ends off the books."""
        if output.finish_reason is not None:
            state = self._unfinished.pop(output.request_id)
            self._served.leave(state.request.tenant)
        return output
