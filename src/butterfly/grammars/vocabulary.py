"""The tokens as the library knows them, and its masks as the sampler wants them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

from llguidance import LLTokenizer, TokenizerWrapper


class Vocabulary(Protocol):
    """What this room needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text, however they are spelled."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to the text; "" when it stands for nothing."""
        ...


class TokenTable:
    """A vocabulary inside the library. Takes a second or two for 262,144 tokens.

    Masks are for a model with `vocab_size` tokens, which may be more or fewer than the tokenizer has. At least one of
    `eos_token_ids` must be a token of both.
    """

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: Sequence[int], vocab_size: int) -> None:
        self.num_tokens = min(vocabulary.vocab_size, vocab_size)
        self.eos_token_ids = tuple(dict.fromkeys(token for token in eos_token_ids if 0 <= token < self.num_tokens))
        self._num_mask_bytes = -(-vocab_size // 8)
        special_ids = {token for token in vocabulary.special_ids if token < self.num_tokens} | set(self.eos_token_ids)
        tokens = [vocabulary.token_bytes(token_id) for token_id in range(self.num_tokens)]
        self._twins = _without_twins(tokens, special_ids)
        ends = sum(1 << token_id for token_id in self.eos_token_ids)
        self.end_mask = self.deflated(ends.to_bytes(self._num_mask_bytes, "little"))  # allows end tokens alone
        self.library = LLTokenizer(
            TokenizerWrapper(_Tokens(tokens, sorted(special_ids), self.eos_token_ids[0])),
            eos_token=list(self.eos_token_ids),
        )
        tokens.clear()  # the library has its own copy, and would keep this one

    def first_twin(self, token_id: int) -> int:
        """Return the token with the same bytes that the library knows: mostly `token_id` itself."""
        return self._twins.get(token_id, token_id)

    def holds(self, mask: bytes, token_id: int) -> bool:
        """Whether one of the library's masks allows a token that the library knows."""
        return 0 <= token_id < self.num_tokens and bool(mask[token_id >> 3] >> (token_id & 7) & 1)

    def deflated(self, mask: bytes) -> bytes:
        """Return one of the library's masks as `specs.SamplingContext.mask` wants it."""
        if self._twins:
            mask = self._with_twins(mask)
        return zlib.compress(mask[: self._num_mask_bytes].ljust(self._num_mask_bytes, b"\0"), level=1)

    def _with_twins(self, mask: bytes) -> bytes:
        bits = bytearray(mask)
        for twin, first in self._twins.items():
            if self.holds(mask, first):
                bits[twin >> 3] |= 1 << (twin & 7)
        return bytes(bits)


def _without_twins(tokens: list[bytes], special_ids: set[int]) -> dict[int, int]:
    """Blank out all but the first of the tokens with the same bytes. Returns whose twin each of the others is.

    The library knows one token for each byte string. SentencePiece vocabularies have two for some, a character's own
    and a byte's, and which of them a model has learned to use is the model's affair.
    """
    first_of: dict[bytes, int] = {}
    twins = {}
    for token_id, spelling in enumerate(tokens):
        if not spelling or token_id in special_ids:
            continue
        first = first_of.setdefault(spelling, token_id)
        if first != token_id:
            twins[token_id] = first
            tokens[token_id] = b""
    return twins


class _Tokens:
    """The shape in which the library takes a vocabulary."""

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id
        self.bos_token_id: int | None = None

    def __call__(self, text: str | bytes) -> list[int]:
        raise NotImplementedError("masks are made of the tokens alone: no text is ever tokenized")
