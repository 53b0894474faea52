"""Text to token ids and back, whole or token by token.

Encoding is the `tokenizers` library's. Decoding works on bytes here: every token stands for a fixed
byte string, so a stream is an incremental UTF-8 decoder over them, costs the same for every token, never
shows half a character, and always adds up to what decoding all ids at once gives. (The library's
DecodeStream decodes a growing window, and with bytes that never become a character it stays silent or
raises.)
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tokenizers

from butterfly.errors import InvalidRequestError, UnsupportedModelError

SPACE_MARK = "▁"  # SentencePiece's visible space


class Tokenizer:
    """A model's tokenizer.

    `backend` does the encoding; `bos_token_id` and `eos_token_id` are what the model file states.
    Raises UnsupportedModelError for a decoder that is neither byte-level nor SentencePiece-like.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, bos_token_id: int | None = None, eos_token_id: int | None = None
    ) -> None:
        self.backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._piece_bytes, self._strips_first_space = _piece_decoder(backend.decoder)
        spell = str.encode if self._piece_bytes is _byte_level_bytes else self._piece_bytes
        self._added_bytes = {token_id: spell(token.content) for token_id, token in added.items()}
        self._bytes_of_id: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`; special tokens written out in it count as such.

        `add_special_tokens` adds what the model wants around a text (often a BOS). Raises
        InvalidRequestError for text that no UTF-8 can hold (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the text holds a lone surrogate at character {error.start}", "messages"
            ) from None
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        stream = self.stream(skip_special_tokens)
        return "".join([*(stream.step(token_id) for token_id in ids), stream.flush()])

    def stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """Return a fresh decoder for one output, fed token by token."""
        return TokenStream(self._visible_bytes(skip_special_tokens), self._strips_first_space)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary spells it, or None."""
        token_id: int | None = self.backend.token_to_id(token)
        return token_id

    def _visible_bytes(self, skip_special_tokens: bool) -> Callable[[int], bytes]:
        hidden = self.special_ids if skip_special_tokens else frozenset()
        return lambda token_id: b"" if token_id in hidden else self.token_bytes(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token stands for by itself: part of a character perhaps, "" beyond the vocabulary.

        A special token stands for its own spelling.
        """
        known = self._bytes_of_id.get(token_id)
        if known is None:
            known = self._added_bytes.get(token_id)
            if known is None:
                piece = self.backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
                known = b"" if piece is None else self._piece_bytes(piece)
            self._bytes_of_id[token_id] = known
        return known


class TokenStream:
    """Turns one output's tokens into text as they come."""

    def __init__(self, token_bytes: Callable[[int], bytes], strips_first_space: bool) -> None:
        self._token_bytes = token_bytes
        self._at_start = strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token_id: int) -> str:
        """Return the text that became certain with this token: possibly "", never half a character."""
        raw = self._token_bytes(token_id)
        if self._at_start and raw:
            self._at_start = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for a character that never became whole, else ""."""
        return self._decoder.decode(b"", final=True)


def byte_alphabet() -> tuple[str, ...]:
    """Return GPT-2's printable stand-in for each byte: itself where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


_BYTE_OF_CHAR = {char: byte for byte, char in enumerate(byte_alphabet())}


def _byte_level_bytes(piece: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in piece])
    except KeyError:
        return piece.encode()  # not spelled in the alphabet: the library, too, takes it literally


def _sentencepiece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.replace(SPACE_MARK, " ").encode()


def _word_bytes(piece: str) -> bytes:
    """Without a decoder the library sets spaces between the tokens."""
    return b" " + piece.encode()


def _piece_decoder(decoder: Any) -> tuple[Callable[[str], bytes], bool]:
    """Return how a piece becomes bytes, and whether one space at the very start is dropped."""
    if decoder is None:
        return _word_bytes, True
    parts = list(_flat_decoders(json.loads(decoder.__getstate__())))
    kinds = {part["type"] for part in parts}
    if kinds == {"ByteLevel"}:
        return _byte_level_bytes, False
    if kinds <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"} and kinds & {"Replace", "Metaspace"}:
        return _sentencepiece_bytes, any(_drops_first_space(part) for part in parts)
    raise UnsupportedModelError(
        f"tokenizer decoder {' + '.join(sorted(kinds))} is not supported; supported: byte-level, SentencePiece-like"
    )


def _flat_decoders(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    nested: Iterable[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else ()
    if state["type"] != "Sequence":
        yield state
    for part in nested:
        yield from _flat_decoders(part)


def _drops_first_space(part: dict[str, Any]) -> bool:
    if part["type"] == "Metaspace":
        return bool(part.get("prepend_scheme", "always") != "never")
    return bool(part["type"] == "Strip" and part.get("start") and part.get("content") == " ")
