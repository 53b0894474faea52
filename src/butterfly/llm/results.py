"""What comes back: a `Generation` for each prompt, with a `Completion` for each of its answers; or `Piece`s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from butterfly.errors import ButterflyError, RequestFailedError
from butterfly.models import Tokenizer
from butterfly.specs import TokenLogprobs

EndReason = Literal["stop", "length"]


class Logprob(NamedTuple):
    """The natural logarithm of one token's probability, before bias, penalties, masks and temperature."""

    logprob: float
    rank: int | None  # 1: the likeliest; None: not among those that were asked for
    decoded_token: str


Position = dict[int, Logprob]
"""One place in a text: the token that is there first, then the likeliest, by token id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer to a prompt."""

    index: int
    text: str  # a stop string or end token that was met is not part of it, unless asked for
    token_ids: list[int]  # all that were sampled, the end token included
    finish_reason: EndReason  # "length": max_tokens or the context ended it
    logprobs: list[Position] | None = None  # of token_ids, when `logprobs` was asked for
    cumulative_logprob: float | None = None  # the sum over token_ids, when `logprobs` was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A prompt with its answers."""

    prompt: str | None  # the text, of a conversation as its template wrote it; None: token ids were given
    prompt_token_ids: list[int]
    outputs: list[Completion]  # `n` of them, by index
    prompt_logprobs: list[Position | None] | None = None  # when asked for; the first token has none
    num_cached_tokens: int = 0  # prompt tokens of output 0 that were found in the KV cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one step added to an answer. The last one of each answer has a finish reason."""

    index: int  # of the answer, below `n`
    text: str  # new text, may be empty: never half a character, never part of a stop string
    token_ids: list[int]  # new tokens
    logprobs: list[Position] | None = None  # of token_ids, when asked for
    finish_reason: EndReason | None = None


class BatchError(RequestFailedError):
    """Some prompts of a batch failed while they ran; the others have their results.

    `errors` says what happened to which prompt, by index; `generations` has None in their places.
    """

    def __init__(self, errors: Mapping[int, ButterflyError], generations: Sequence[Generation | None]) -> None:
        first = min(errors)
        super().__init__(f"{len(errors)} of {len(generations)} prompts failed; prompts[{first}]: {errors[first]}")
        self.errors = dict(errors)
        self.generations = list(generations)


def positions(logprobs: Iterable[TokenLogprobs], tokenizer: Tokenizer) -> list[Position]:
    """The same as users read it: a dict for each position."""
    return [_position(entry, tokenizer) for entry in logprobs]


def _position(entry: TokenLogprobs, tokenizer: Tokenizer) -> Position:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(entry.top, 1)}
    values = {entry.token_id: entry.logprob} | dict(entry.top)
    return {
        token_id: Logprob(value, ranks.get(token_id), tokenizer.decode([token_id], skip_special_tokens=False))
        for token_id, value in values.items()
    }
