"""From the tokens of one engine request to the text of one choice."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from butterfly.api.interfaces import TokenStream
from butterfly.errors import RequestFailedError, RequestTimeoutError
from butterfly.specs import Request, RequestOutput, TokenLogprobs

ClientReason = Literal["stop", "length"]  # how the text of a choice ends


class StopFilter:
    """Lets text through until a stop string is complete, and holds back what may become one.

    The result does not depend on how the text is cut into pieces: the stop string that is complete first
    ends the text; of several complete at the same character, the longest.
    """

    def __init__(self, stops: tuple[str, ...], *, keeps_stop: bool = False) -> None:
        """`keeps_stop`: the stop string that is met still goes out."""
        self._stops = stops
        self._keeps_stop = keeps_stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may go out, and whether a stop string was met (then push no more)."""
        text = self._held + text
        self._held = ""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            return text[: end if self._keeps_stop else start], True
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
class ShownToken:
    """A generated token whose text, if it has any, has gone out."""

    logprobs: TokenLogprobs
    offset: int  # characters of the choice's text before it
    is_silent: bool  # it ended the output and is no part of its text


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """What one engine output added to a choice."""

    index: int
    text: str
    finish_reason: ClientReason | None
    num_tokens: int  # output tokens so far
    tokens: tuple[ShownToken, ...] = ()  # only when the request asks for logprobs
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of prompt tokens 1, 2, ...; in the first event, when asked for


class Choice:
    """The text of one choice, built token by token.

    Logprobs go out with the text of their token: they wait when it is held back, and those of tokens behind
    a stop string never go out.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        stream: TokenStream,
        stops: tuple[str, ...] = (),
        *,
        keeps_stop: bool = False,
        silent_token_ids: Collection[int] | None = None,
        is_prompt_only: bool = False,
    ) -> None:
        """Stop strings are looked for in what comes after `request.min_tokens` tokens.

        `keeps_stop`: the stop string that ends the text stays in it. `silent_token_ids` have no text; None:
        the request's stop tokens. `is_prompt_only`: only the prompt's logprobs are wanted, no output.
        """
        self._index = index
        self._request = request
        self._stream = stream
        self._stop_filter = StopFilter(stops, keeps_stop=keeps_stop)
        self._silent = frozenset(request.stop_token_ids if silent_token_ids is None else silent_token_ids)
        self._is_prompt_only = is_prompt_only
        self._num_tokens = 0
        self._num_decoded = 0  # characters
        self._num_released = 0  # characters that went out
        self._waiting: deque[ShownToken] = deque()

    def advance(self, output: RequestOutput) -> ChoiceEvent:
        """Return what `output` adds. Raises RequestFailedError for one that ended with error or abort."""
        self._raise_failure(output)
        if self._is_prompt_only:
            reason: ClientReason | None = None if output.finish_reason is None else "length"
            return ChoiceEvent(self._index, "", reason, 0, prompt_logprobs=output.prompt_logprobs)
        pieces: list[str] = []
        for number, token_id in enumerate(output.token_ids):
            self._num_tokens += 1
            is_silent = token_id in self._silent
            if self._request.sampling.num_logprobs is not None:
                self._waiting.append(ShownToken(output.logprobs[number], self._num_decoded, is_silent))
            if not is_silent and self._passes(self._stream.step(token_id), pieces):
                return self._event(output, pieces, "stop")
        if output.finish_reason is None:
            return self._event(output, pieces, None)
        if self._passes(self._stream.flush(), pieces):
            return self._event(output, pieces, "stop")
        pieces.append(self._stop_filter.flush())
        return self._event(output, pieces, "stop" if output.finish_reason == "stop" else "length", is_complete=True)

    def _raise_failure(self, output: RequestOutput) -> None:
        if output.finish_reason in ("error", "abort"):
            kind = RequestTimeoutError if output.timed_out else RequestFailedError
            raise kind(output.error or "the request was aborted by the server", self._request.request_id)

    def _passes(self, text: str, pieces: list[str]) -> bool:
        """Append what of `text` may go out. Return whether a stop string was met."""
        self._num_decoded += len(text)
        if self._num_tokens <= self._request.min_tokens:
            pieces.append(text)
            return False
        allowed, is_stopped = self._stop_filter.push(text)
        pieces.append(allowed)
        return is_stopped

    def _event(
        self, output: RequestOutput, pieces: list[str], finish_reason: ClientReason | None, *, is_complete: bool = False
    ) -> ChoiceEvent:
        """`is_complete`: all text is out, so that tokens without text wait for nothing any more."""
        text = "".join(pieces)
        self._num_released += len(text)
        shown = []
        # A token that made no text of its own (a part of a character) has the offset of the text to come.
        while self._waiting and (is_complete or self._waiting[0].offset < self._num_released):
            shown.append(self._waiting.popleft())
        return ChoiceEvent(
            self._index, text, finish_reason, self._num_tokens, tuple(shown), prompt_logprobs=output.prompt_logprobs
        )
