"""Requests while a plan serves: the scheduler, who waits for which output, and what the steps cost."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

from butterfly.coordinator.request_streams import RequestStream
from butterfly.errors import InvalidRequestError, OverloadedError, RequestError
from butterfly.monitoring import BusyShare, Metrics, RefusalReason, StepStatistics
from butterfly.scheduling import InvariantError, Scheduler, SchedulerConfig, SchedulerCounts
from butterfly.specs import KeptSequence, LayerRange, RequestOutput, StageTiming, StepPlan, StepResult

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _InFlight:
    """A step that was sent."""

    plan: StepPlan
    sent_s: float
    is_alone: bool  # no other was under way at any time


class _Finished(NamedTuple):
    """A step that came back, with what is still to be told of it."""

    step: _InFlight
    timings: tuple[StageTiming, ...]
    received_s: float
    outputs: list[RequestOutput]


class Serving:
    """Used on the coordinator's thread only. Times are on its monotonic clock.

    `finish_step` does what the next step depends on; who waits for the tokens hears of them in `settle`, after the
    next step has left: readers' work must not stand between two steps.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, statistics: StepStatistics) -> None:
        self._scheduler, self._metrics, self._statistics = scheduler, metrics, statistics
        self._busy = BusyShare()
        self._num_preemptions = 0
        self._is_checked = True  # the books, since the last step
        self._streams: dict[str, RequestStream] = {}
        self._sent: dict[int, _InFlight] = {}  # by the steps' ids
        self._last_result_s = 0.0
        self._finished: list[_Finished] = []  # steps that `settle` has still to tell of
        self.has_free_slot = True  # whether a result came since `next_step` last had nothing to give

    @property
    def counts(self) -> SchedulerCounts:
        return self._scheduler.counts

    @property
    def refill_s(self) -> float:
        """As the scheduler's."""
        return self._scheduler.refill_s

    def add(self, stream: RequestStream, now_s: float) -> None:
        """Queue a request, or tell its stream why not."""
        try:
            self._scheduler.add(stream.request, now_s, stream.matcher)
        except RequestError as error:
            self._metrics.request_refused(_kind_of_refusal(error))
            stream.refuse(error)
            return
        self._streams[stream.request.request_id] = stream
        self.has_free_slot = True
        stream.accept()
        self._report_queue()

    def abort(self, request_id: str, now_s: float) -> None:
        """End a request with `abort`; unknown ids are ignored."""
        self.settle()  # its tokens go out before its end
        self._scheduler.abort(request_id)
        self._deliver(self._scheduler.drain_outputs(), now_s)

    def expire(self, now_s: float) -> None:
        """End the requests whose deadline has passed."""
        self.settle()
        self._deliver(self._scheduler.expire(now_s), now_s)

    def check_when_idle(self) -> None:
        """Once after every busy time: do the scheduler's books balance? If not, say so, and go on serving."""
        if self._is_checked or not self._scheduler.is_idle:
            return
        self._is_checked = True
        try:
            self._scheduler.check_integrity()
        except InvariantError as error:
            _log.error("the scheduler's books do not balance: %s", error)

    def next_step(self, now_s: float) -> StepPlan | None:
        """Return a step to send, or None."""
        step = self._scheduler.schedule()
        if step is None:
            self.has_free_slot = False
            return None
        self._is_checked = False
        for other in self._sent.values():
            other.is_alone = False
        self._sent[step.step_id] = _InFlight(step, now_s, is_alone=not self._sent)
        return step

    def finish_step(self, result: StepResult, now_s: float) -> None:
        """Take in a step's samples, so that the next step can be made of them."""
        outputs = self._scheduler.update(result)
        if result.step_id not in self._sent:  # a worker repeats itself
            return
        self.has_free_slot, self._last_result_s = True, now_s
        step = self._sent.pop(result.step_id)
        self._finished.append(_Finished(step, result.timings, now_s, outputs))

    def settle(self) -> None:
        """Deliver the outputs of the steps that came back, and count them."""
        finished, self._finished = self._finished, []
        for step, timings, received_s, outputs in finished:
            total_s = received_s - step.sent_s
            self._deliver(outputs, received_s)
            self._metrics.step_finished(timings, total_s)
            self._busy.record(timings)
            num_prompt = sum(part.num_prompt_tokens for part in step.plan.sequences)
            self._metrics.tokens_computed(num_prompt=num_prompt, num_output=step.plan.num_tokens - num_prompt)
            is_new = step.plan.refill is None
            if is_new and step.plan.sequences and all(sequence.num_tokens == 1 for sequence in step.plan.sequences):
                self._statistics.record(timings, total_s, _lone_context(step))

    def oldest_step(self) -> StepPlan | None:
        """The step that should come back next; None when none is under way."""
        oldest = self._oldest()
        return None if oldest is None else oldest.plan

    def stalled_s(self, now_s: float) -> float:
        """How long nothing has come back while steps are under way."""
        oldest = self._oldest()
        return 0.0 if oldest is None else now_s - max(oldest.sent_s, self._last_result_s)

    def _oldest(self) -> _InFlight | None:
        return next(iter(self._sent.values()), None)  # in the order of sending

    def hold(self) -> None:
        """Forget the steps under way: their stages are gone or about to be. Requests keep the tokens they have."""
        self.settle()
        self._sent.clear()
        self._scheduler.hold()
        self.has_free_slot = False
        self._report_queue()

    def kept_for(self, config: SchedulerConfig) -> tuple[KeptSequence, ...]:
        """As the scheduler's, after `hold`."""
        return self._scheduler.kept_for(config)

    def resume(self, config: SchedulerConfig, refill: LayerRange | None, now_s: float) -> None:
        """Go on with stages that lack what they have of these layers, or of all: computing brings every request to
        where it was."""
        self._deliver(self._scheduler.resume(config, refill), now_s)
        self._last_result_s = now_s
        self.has_free_slot = True

    def fail_all(self, reason: str, now_s: float) -> None:
        """End every request with an error."""
        self.settle()
        self._sent.clear()
        self._deliver([*self._scheduler.drain_outputs(), *self._scheduler.fail_all(reason)], now_s)

    def _deliver(self, outputs: list[RequestOutput], now_s: float) -> None:
        for output in outputs:
            stream = self._streams[output.request_id]
            stream.put(output, now_s)
            if output.finish_reason is not None:
                del self._streams[output.request_id]
                self._metrics.request_finished(
                    output.finish_reason,
                    num_prompt_tokens=output.num_prompt_tokens,
                    num_output_tokens=output.num_output_tokens,
                    num_cached_tokens=output.num_cached_tokens,
                    ttft_s=stream.ttft_s(),
                    tpot_s=stream.tpot_s(output.num_output_tokens, now_s),
                )
        self._report_queue()

    def report_load(self) -> None:
        """Tell the gauges how full everything is. A few times a second is enough."""
        counts = self._scheduler.counts
        self._metrics.kv_changed(
            used_tokens=counts.used_tokens, kept_tokens=counts.kept_tokens, free_tokens=counts.free_tokens
        )
        self._metrics.preempted(counts.num_preemptions - self._num_preemptions)
        self._num_preemptions = counts.num_preemptions
        self._metrics.stages_busy(self._busy.summary())

    def _report_queue(self) -> None:
        counts = self._scheduler.counts
        self._metrics.queue_changed(running=counts.num_running, waiting=counts.num_waiting)


def _lone_context(step: _InFlight) -> int | None:
    """How many tokens its sequence had before, if it is one generated token of a stream that runs alone."""
    sequences, adopted = step.plan.sequences, step.plan.adopted
    if not step.is_alone or adopted or len(sequences) != 1 or step.plan.num_tokens != 1:
        return None
    return None if sequences[0].num_prompt_tokens else sequences[0].start


def _kind_of_refusal(error: RequestError) -> RefusalReason:
    if isinstance(error, OverloadedError):
        return "overloaded"
    return "invalid" if isinstance(error, InvalidRequestError) else "not_ready"
