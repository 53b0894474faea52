"""What became of each request, gathered from the outputs of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from butterfly.simulation.specs import RequestReport, SimulatedRequest
from butterfly.specs import FinishReason, RequestOutput


@dataclass(slots=True)
class _Entry:
    request: SimulatedRequest
    token_times_s: list[float] = field(default_factory=list)
    num_cached_tokens: int = 0
    ended_s: float = 0.0
    finish_reason: FinishReason | None = None
    error: str = ""

    def report(self) -> RequestReport:
        assert self.finish_reason is not None
        times, arrived_s = self.token_times_s, self.request.arrival_s
        return RequestReport(
            request_id=self.request.request_id,
            arrived_s=arrived_s,
            ended_s=self.ended_s,
            num_output_tokens=len(times),
            finish_reason=self.finish_reason,
            ttft_s=times[0] - arrived_s if times else None,
            tpot_s=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
            token_times_s=tuple(times),
            num_cached_tokens=self.num_cached_tokens,
            error=self.error,
        )


class Ledger:
    """One entry per request; each must end exactly once."""

    def __init__(self, requests: tuple[SimulatedRequest, ...]) -> None:
        self._entries = {request.request_id: _Entry(request) for request in requests}
        if len(self._entries) != len(requests):
            raise ValueError("two simulated requests share an id")
        self.num_open = len(requests)

    def record(self, output: RequestOutput, now_s: float) -> None:
        """Take in an output of the scheduler that came out at `now_s`."""
        entry = self._entries[output.request_id]
        entry.token_times_s += [now_s] * len(output.token_ids)
        entry.num_cached_tokens = output.num_cached_tokens
        if output.finish_reason is not None:
            self._end(entry, output.finish_reason, output.error, now_s)

    def refuse(self, request_id: str, error: str, now_s: float) -> None:
        """The request was not accepted."""
        self._end(self._entries[request_id], "error", error, now_s)

    def reports(self) -> tuple[RequestReport, ...]:
        return tuple(entry.report() for entry in self._entries.values())

    def _end(self, entry: _Entry, reason: FinishReason, error: str, now_s: float) -> None:
        if entry.finish_reason is not None:
            raise AssertionError(f"request {entry.request.request_id} ended twice")
        entry.finish_reason, entry.error, entry.ended_s = reason, error, now_s
        self.num_open -= 1
