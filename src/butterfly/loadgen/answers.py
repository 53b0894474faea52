"""One streamed answer, measured while it arrives."""

from __future__ import annotations

import msgspec

from butterfly.errors import ProtocolError
from butterfly.loadgen.chunks import CHUNKS, Choice, Usage, describe
from butterfly.loadgen.spec import RequestRecord
from butterfly.loadgen.sse import EventParser

_DIGITS = 6  # of a second: more would only be noise in the JSON


class AnswerReader:
    """Fed with bytes and the time they came. Times are of the caller's clock."""

    def __init__(self) -> None:
        self._events = EventParser()
        self._is_done = False
        self._usage: Usage | None = None
        self._finish_reason = ""
        self._failure = ""
        self._chunk_times_s: list[float] = []
        self._last_s: float | None = None  # of the last chunk that belongs to the output, its end included

    def feed(self, piece: bytes, now_s: float) -> None:
        """Read on. What is wrong with the stream becomes the failure of its record."""
        try:
            for data in self._events.feed(piece):
                self._take(data, now_s)
        except (ProtocolError, msgspec.DecodeError) as error:
            self._failure = self._failure or f"the stream cannot be read: {error}"

    def _take(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self._is_done = True
            return
        chunk = CHUNKS.decode(data)
        if chunk.error is not None:
            self._failure = self._failure or f"error in the stream: {describe(chunk.error)}"
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            self._take_choice(choice, now_s)

    def _take_choice(self, choice: Choice, now_s: float) -> None:
        if choice.has_output:
            self._chunk_times_s.append(now_s)
            self._last_s = now_s
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
            self._last_s = now_s

    @property
    def has_usage(self) -> bool:
        return self._usage is not None

    def record(
        self, index: int, sent_s: float, start_s: float, num_sent_tokens: int, *, lag_s: float = 0.0, failure: str = ""
    ) -> RequestRecord:
        """Return what came. `sent_s`: when the request was; `start_s`: when the measurement began.

        `num_sent_tokens` is the length of the input where the server does not tell it.
        """
        usage = self._usage or Usage(prompt_tokens=num_sent_tokens, completion_tokens=len(self._chunk_times_s))
        num_output_tokens = usage.completion_tokens or 0
        times_s = tuple(round(time_s - sent_s, _DIGITS) for time_s in self._chunk_times_s)
        e2e_s = None if self._last_s is None else round(self._last_s - sent_s, _DIGITS)
        ttft_s = times_s[0] if times_s else e2e_s
        details = usage.prompt_tokens_details
        return RequestRecord(
            index=index,
            started_s=round(sent_s - start_s, _DIGITS),
            lag_s=round(lag_s, _DIGITS),
            failure=failure or self._failure or self._breach(),
            finish_reason=self._finish_reason,
            ttft_s=ttft_s,
            tpot_s=_time_per_token(ttft_s, e2e_s, num_output_tokens),
            e2e_s=e2e_s,
            num_input_tokens=usage.prompt_tokens,
            num_output_tokens=num_output_tokens,
            num_cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            chunk_times_s=times_s,
        )

    def _breach(self) -> str:
        if not self._finish_reason and not self._is_done:
            return "the stream broke off before its end"
        return "" if self._last_s is not None else "the answer is empty"


def _time_per_token(ttft_s: float | None, e2e_s: float | None, num_tokens: int) -> float | None:
    """Of the tokens after the first."""
    if ttft_s is None or e2e_s is None or num_tokens < 2:
        return None
    return (e2e_s - ttft_s) / (num_tokens - 1)
