"""Requests while a plan serves: the scheduler, who waits for which output, and what the steps cost."""

from __future__ import annotations

from typing import NamedTuple

from butterfly.coordinator.request_streams import RequestStream
from butterfly.errors import RequestError
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.scheduling import Scheduler
from butterfly.specs import RequestOutput, StageTiming, StepPlan, StepResult


class _Finished(NamedTuple):
    """A step that came back, with what is still to be told of it."""

    plan: StepPlan
    timings: tuple[StageTiming, ...]
    sent_s: float
    received_s: float
    outputs: list[RequestOutput]


class Serving:
    """Used on the coordinator's thread only. Times are on its monotonic clock.

    `finish_step` does what the next step depends on; who waits for the tokens hears of them in `settle`, after the
    next step has left: readers' work must not stand between two steps.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, statistics: StepStatistics) -> None:
        self._scheduler, self._metrics, self._statistics = scheduler, metrics, statistics
        self._streams: dict[str, RequestStream] = {}
        self._sent: dict[int, tuple[StepPlan, float]] = {}  # steps in flight, and when they left
        self._finished: list[_Finished] = []  # steps that `settle` has still to tell of
        self.has_free_slot = True  # whether a result came since `next_step` last had nothing to give

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    def add(self, stream: RequestStream, now_s: float) -> None:
        """Queue a request, or tell its stream why not."""
        try:
            self._scheduler.add(stream.request, now_s)
        except RequestError as error:
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

    def next_step(self, now_s: float) -> StepPlan | None:
        """Return a step to send, or None."""
        step = self._scheduler.schedule()
        if step is None:
            self.has_free_slot = False
            return None
        self._sent[step.step_id] = (step, now_s)
        return step

    def finish_step(self, result: StepResult, now_s: float) -> None:
        """Take in a step's samples, so that the next step can be made of them."""
        outputs = self._scheduler.update(result)
        if result.step_id not in self._sent:  # a worker repeats itself
            return
        self.has_free_slot = True
        step, sent_s = self._sent.pop(result.step_id)
        self._finished.append(_Finished(step, result.timings, sent_s, now_s, outputs))

    def settle(self) -> None:
        """Deliver the outputs of the steps that came back, and count them."""
        finished, self._finished = self._finished, []
        for step in finished:
            total_s = step.received_s - step.sent_s
            self._deliver(step.outputs, step.received_s)
            self._metrics.step_finished(step.timings, total_s)
            if step.plan.sequences and all(sequence.num_tokens == 1 for sequence in step.plan.sequences):
                self._statistics.record(step.timings, total_s)

    def oldest_step_age_s(self, now_s: float) -> float:
        return max((now_s - sent_s for _, sent_s in self._sent.values()), default=0.0)

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
                    ttft_s=stream.ttft_s(),
                    tpot_s=stream.tpot_s(output.num_output_tokens, now_s),
                )
        self._report_queue()

    def _report_queue(self) -> None:
        self._metrics.queue_changed(running=self._scheduler.num_running, waiting=self._scheduler.num_waiting)
