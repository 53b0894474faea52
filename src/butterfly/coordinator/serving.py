"""Requests while a plan serves: the scheduler, who waits for which output, and what the steps cost."""

from __future__ import annotations

from butterfly.coordinator.request_streams import RequestStream
from butterfly.errors import RequestError
from butterfly.monitoring import Metrics, StepStatistics
from butterfly.scheduling import Scheduler
from butterfly.specs import RequestOutput, StepPlan, StepResult


class Serving:
    """Used on the coordinator's thread only. Times are on its monotonic clock."""

    def __init__(self, scheduler: Scheduler, metrics: Metrics, statistics: StepStatistics) -> None:
        self._scheduler, self._metrics, self._statistics = scheduler, metrics, statistics
        self._streams: dict[str, RequestStream] = {}
        self._sent: dict[int, tuple[StepPlan, float]] = {}  # steps in flight, and when they left
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
        """Take in a step's samples and deliver what they add to each request."""
        outputs = self._scheduler.update(result)
        if result.step_id not in self._sent:  # a worker repeats itself
            return
        self.has_free_slot = True
        step, sent_s = self._sent.pop(result.step_id)
        self._metrics.step_finished(result.timings, now_s - sent_s)
        if step.sequences and all(sequence.num_tokens == 1 for sequence in step.sequences):
            self._statistics.record(result.timings, now_s - sent_s)
        self._deliver(outputs, now_s)

    def oldest_step_age_s(self, now_s: float) -> float:
        return max((now_s - sent_s for _, sent_s in self._sent.values()), default=0.0)

    def fail_all(self, reason: str, now_s: float) -> None:
        """End every request with an error."""
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
