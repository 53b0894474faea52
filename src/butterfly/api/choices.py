"""From the tokens of one engine request to the text of one choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from butterfly.api.interfaces import TokenStream
from butterfly.errors import RequestFailedError
from butterfly.specs import Request, RequestOutput

ClientReason = Literal["stop", "length"]  # the finish reasons a client may see


class StopFilter:
    """Lets text through until a stop string is complete, and holds back what may become one.

    The result does not depend on how the text is cut into pieces: the stop string that is complete first
    ends the text; of several complete at the same character, the longest.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may go out, and whether a stop string was met (then push no more)."""
        text = self._held + text
        self._held = ""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start = min(found)
            return text[:start], True
        cut = len(text) - self._num_open(text)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """Return what was held back: nothing more can complete it."""
        held, self._held = self._held, ""
        return held

    def _num_open(self, text: str) -> int:
        """Return the length of the longest end of `text` that starts a stop string."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """What one engine output added to a choice."""

    index: int
    text: str
    finish_reason: ClientReason | None
    num_tokens: int  # output tokens so far


class Choice:
    """The text of one choice, built token by token."""

    def __init__(self, index: int, request: Request, stream: TokenStream, stops: tuple[str, ...]) -> None:
        self._index = index
        self._request = request
        self._stream = stream
        self._stop_filter = StopFilter(stops)
        self._num_tokens = 0

    def advance(self, output: RequestOutput) -> ChoiceEvent:
        """Return what `output` adds. Raises RequestFailedError for one that ended with error or abort."""
        if output.finish_reason in ("error", "abort"):
            reason = output.error or "the request was aborted by the server"
            raise RequestFailedError(reason, self._request.request_id)
        pieces: list[str] = []
        for token_id in output.token_ids:
            self._num_tokens += 1
            if token_id in self._request.stop_token_ids:
                continue  # the end of the output, not part of its text
            if self._passes(self._stream.step(token_id), pieces):
                return self._event(pieces, "stop")
        if output.finish_reason is None:
            return self._event(pieces, None)
        if self._passes(self._stream.flush(), pieces):
            return self._event(pieces, "stop")
        pieces.append(self._stop_filter.flush())
        return self._event(pieces, "stop" if output.finish_reason == "stop" else "length")

    def _passes(self, text: str, pieces: list[str]) -> bool:
        """Append what of `text` may go out. Return whether a stop string was met."""
        allowed, is_stopped = self._stop_filter.push(text)
        pieces.append(allowed)
        return is_stopped

    def _event(self, pieces: list[str], finish_reason: ClientReason | None) -> ChoiceEvent:
        return ChoiceEvent(self._index, "".join(pieces), finish_reason, self._num_tokens)
