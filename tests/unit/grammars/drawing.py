"""Vocabularies, masks and random outputs for the tests of grammars."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from butterfly.grammars import Matcher

_MAX_TOKENS = 2000
_MANY = 500


class ByteVocabulary:
    """Every byte, then some words, then special tokens."""

    def __init__(
        self, words: Sequence[bytes] = (), special: Sequence[bytes] = (b"<end>", b"<stop>", b"<call>")
    ) -> None:
        self._tokens = [*(bytes([byte]) for byte in range(256)), *words, *special]
        self.vocab_size = len(self._tokens)
        self.special_ids = frozenset(range(self.vocab_size - len(special), self.vocab_size))

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokens[token_id]

    def id_of(self, token: bytes) -> int:
        """Return the last token with these bytes."""
        return max(token_id for token_id, known in enumerate(self._tokens) if known == token)


class Way(NamedTuple):
    """How an output that has gone on for long enough finds its end: tokens, the best first."""

    ends: Sequence[int]
    in_text: Sequence[int]  # where almost everything is allowed
    between: Sequence[int]  # where little is


def allowed(mask: bytes) -> list[int]:
    """Return the token ids that a mask allows, ascending."""
    ids: list[int] = np.flatnonzero(_bits(mask)).tolist()
    return ids


def draw_output(matcher: Matcher, token_bytes: Callable[[int], bytes], way: Way, seed: int, num_free: int) -> str:
    """Return a random output: `num_free` tokens, each as likely as any that is allowed, then straight to an end."""
    draw = random.Random(seed)
    text = b""
    for number in range(_MAX_TOKENS):
        bits = _bits(matcher.mask())
        candidates = np.flatnonzero(bits)
        token_id = int(candidates[draw.randrange(len(candidates))])
        if number >= num_free:
            wishes = way.in_text if len(candidates) > _MANY else way.between
            token_id = next((wish for wish in (*way.ends, *wishes) if bits[wish]), token_id)
        matcher.accept(token_id)
        if matcher.is_finished:
            return text.decode()
        text += token_bytes(token_id)
    raise AssertionError(f"no end after {_MAX_TOKENS} tokens: {text[-200:]!r}")


def _bits(mask: bytes) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(zlib.decompress(mask), dtype=np.uint8), bitorder="little")
