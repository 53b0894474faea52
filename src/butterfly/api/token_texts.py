"""How tokens and their logprobs are spelled in answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from butterfly.api.choices import ShownToken
from butterfly.api.interfaces import Tokenizer
from butterfly.api.shapes import Alternative, ChatLogprobs, CompletionLogprobs, ContentLogprob
from butterfly.specs import TokenLogprobs

_LEAST_LOGPROB = -9999.0  # OpenAI's, for a probability of 0: JSON has no infinity


def spelled(raw: bytes) -> str:
    r"""Return the text of a token, or bytes:\xNN... (OpenAI's way) for a part of a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    return max(_LEAST_LOGPROB, logprob)


# --------------------------------------------------------------------------------------------- chat


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[ShownToken]) -> ChatLogprobs:
    """Return the logprobs of `tokens` in the chat format."""
    return ChatLogprobs(content=[_content_logprob(tokenizer, token.logprobs) for token in tokens])


def _content_logprob(tokenizer: Tokenizer, logprobs: TokenLogprobs) -> ContentLogprob:
    own = _alternative(tokenizer, logprobs.token_id, logprobs.logprob)
    top = [_alternative(tokenizer, token_id, logprob) for token_id, logprob in logprobs.top]
    return ContentLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _alternative(tokenizer: Tokenizer, token_id: int, logprob: float) -> Alternative:
    raw = tokenizer.token_bytes(token_id)
    return Alternative(token=spelled(raw), logprob=finite(logprob), bytes=list(raw))


# -------------------------------------------------------------------------------------- completions


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as it is shown before its output."""

    text: str
    token_ids: tuple[int, ...]


def echo_of(tokenizer: Tokenizer, token_ids: Sequence[int], text: str | None, *, skip_special_tokens: bool) -> Echo:
    """Return how the prompt `token_ids` is shown; `text` is what the client sent, None for token ids."""
    if text is None:
        text = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    return Echo(text, tuple(token_ids))


def echo_logprobs(tokenizer: Tokenizer, echo: Echo, scored: Sequence[TokenLogprobs]) -> CompletionLogprobs:
    """Return the logprobs of a prompt; `scored` are those of its tokens 1, 2, ...: nothing predicts the first."""
    first = CompletionLogprobs(
        tokens=[spelled(tokenizer.token_bytes(echo.token_ids[0]))],
        token_logprobs=[None],
        top_logprobs=[None],
        text_offset=[0],
    )
    offsets = _offsets(tokenizer, echo)
    return join_logprobs([first, _legacy_logprobs(tokenizer, zip(scored, offsets[1:], strict=True))])


def _offsets(tokenizer: Tokenizer, echo: Echo) -> list[int]:
    """Return how many characters of the text come before each token."""
    stream = tokenizer.stream(skip_special_tokens=False)
    offset = 0
    offsets = []
    for token_id in echo.token_ids:
        offsets.append(min(offset, len(echo.text)))
        is_special = token_id in tokenizer.special_ids
        # A special token that the text does not spell was added around it, or is hidden in it.
        if not is_special or echo.text.startswith(spelled(tokenizer.token_bytes(token_id)), offset):
            offset += len(stream.step(token_id))
    return offsets


def completion_logprobs(tokenizer: Tokenizer, tokens: Iterable[ShownToken], start: int) -> CompletionLogprobs:
    """Return the logprobs of `tokens`, the stop token included, of an output that begins at character `start`."""
    return _legacy_logprobs(tokenizer, ((token.logprobs, start + token.offset) for token in tokens))


def join_logprobs(parts: Iterable[CompletionLogprobs]) -> CompletionLogprobs:
    joined = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for part in parts:
        joined.tokens.extend(part.tokens)
        joined.token_logprobs.extend(part.token_logprobs)
        joined.top_logprobs.extend(part.top_logprobs)
        joined.text_offset.extend(part.text_offset)
    return joined


def _legacy_logprobs(tokenizer: Tokenizer, tokens: Iterable[tuple[TokenLogprobs, int]]) -> CompletionLogprobs:
    joined = join_logprobs([])
    for token, offset in tokens:
        joined.tokens.append(spelled(tokenizer.token_bytes(token.token_id)))
        joined.token_logprobs.append(finite(token.logprob))
        joined.top_logprobs.append(_top_by_text(tokenizer, token))
        joined.text_offset.append(offset)
    return joined


def _top_by_text(tokenizer: Tokenizer, token: TokenLogprobs) -> dict[str, float]:
    """Return the likeliest tokens and the token itself, with the very float that stands in token_logprobs.

    Tokens that are spelled alike keep apart: all but the first of them go by their ids.
    """
    by_text = {spelled(tokenizer.token_bytes(token.token_id)): finite(token.logprob)}
    for token_id, logprob in token.top:
        if token_id != token.token_id:
            text = spelled(tokenizer.token_bytes(token_id))
            by_text[f"token_id:{token_id}" if text in by_text else text] = finite(logprob)
    return by_text
