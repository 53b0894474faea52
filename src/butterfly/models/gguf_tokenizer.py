"""Builds a tokenizer from the vocabulary in a GGUF file, with the `tokenizers` library alone.

Two kinds exist for our families: `gpt2` (byte-level BPE with listed merges) and `llama` (SentencePiece
BPE, whose merges are implied by the pieces' scores).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from butterfly.errors import ConfigError, ModelFormatError, UnsupportedModelError
from butterfly.folders import cache_folder
from butterfly.models.cache import cached_file
from butterfly.models.gguf_file import GgufFile
from butterfly.models.tokenizer import SPACE_MARK, Tokenizer

logger = logging.getLogger(__name__)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type
_SLOW_BUILD_S = 1.5
_CACHED_FORMAT = 1  # raise when what is built from the same vocabulary changes


@dataclass(frozen=True)
class _PreTokenizer:
    """How text is cut before merging, as the vocabulary was trained."""

    pattern: str = ""  # empty: GPT-2's own pattern
    single_digits: bool = False  # every digit alone, before anything else
    ignore_merges: bool = False  # a piece that is in the vocabulary is taken whole
    nfc: bool = False
    adds_bos: bool = False  # unless the file says otherwise


def _split_pattern(digits: str, slash: str = "") -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n"
        + slash
        + r"]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_GPT2 = _PreTokenizer()
_LLAMA3 = _PreTokenizer(pattern=_split_pattern(r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True)
_QWEN2 = _PreTokenizer(pattern=_split_pattern(r"\p{N}"), nfc=True)

PRE_TOKENIZERS: Mapping[str, _PreTokenizer] = {
    "gpt-2": _GPT2,
    "default": _GPT2,
    "smollm": _PreTokenizer(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _PreTokenizer(pattern=_TEKKEN_PATTERN, ignore_merges=True, adds_bos=True),
}
"""`tokenizer.ggml.pre` -> how to cut."""


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Return the tokenizer of a GGUF file.

    Raises ModelFormatError when the vocabulary is missing or inconsistent, UnsupportedModelError for
    another kind than `gpt2` and `llama`.
    """
    tokens = file.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelFormatError(f"{file.path}: no vocabulary (tokenizer.ggml.tokens)")
    kind = file.text("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(file, tokens)
    elif kind == "llama":
        backend = _cached(file, tokens)
    else:
        raise UnsupportedModelError(f"{file.path}: tokenizer {kind!r} is not supported; supported: gpt2, llama")
    return Tokenizer(
        backend,
        bos_token_id=_token_id(file, "bos", tokens),
        eos_token_id=_token_id(file, "eos", tokens),
    )


def _token_id(file: GgufFile, role: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    if key not in file.metadata:
        return None
    token_id = file.integer(key)
    if not 0 <= token_id < len(tokens):
        raise ModelFormatError(f"{file.path}: {key} is {token_id}, the vocabulary has {len(tokens)} tokens")
    return token_id


# ---------------------------------------------------------------------------------- byte-level BPE


def _byte_level(file: GgufFile, tokens: list[str]) -> tokenizers.Tokenizer:
    name = file.text("tokenizer.ggml.pre", "default")
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        logger.warning("%s: unknown pre-tokenizer %r, using the default; tokens may differ", file.path, name)
        pre = _GPT2
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _listed_merges(file, vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.single_digits else []
    if pre.pattern:
        cuts.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pre.pattern))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.decoder = decoders.ByteLevel()
    _add_whole_tokens(backend, file, tokens)
    _add_bos(backend, file, tokens, default=pre.adds_bos)
    return backend


def _listed_merges(file: GgufFile, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for line in file.strings("tokenizer.ggml.merges"):
        rest, _, right = line[1:].partition(" ")  # the left half is never empty, but may be a space
        left = line[:1] + rest
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelFormatError(f"{file.path}: merge {line!r} is not of this vocabulary")
        merges.append((left, right))
    return merges


# ------------------------------------------------------------------------------- SentencePiece BPE


def _cached(file: GgufFile, tokens: list[str]) -> tokenizers.Tokenizer:
    """Build the tokenizer, and keep it as tokenizer.json when that was slow (large vocabularies)."""
    name = f"tokenizers/{_digest(file, tokens)}.json"
    kept = cache_folder() / name
    try:
        return tokenizers.Tokenizer.from_buffer(kept.read_bytes())
    except OSError:
        pass  # not there yet
    except ValueError:
        logger.warning("%s is damaged, making it again", kept)
        kept.unlink(missing_ok=True)
    started_s = time.monotonic()
    backend = _sentencepiece(file, tokens)
    if time.monotonic() - started_s > _SLOW_BUILD_S:
        try:
            cached_file(name, lambda path: backend.save(str(path), pretty=False))
        except ConfigError as error:
            logger.warning("%s", error)  # only slower next time
    return backend


def _digest(file: GgufFile, tokens: list[str]) -> str:
    """Return a name for everything that the tokenizer is built from."""
    digest = hashlib.sha256(f"{_CACHED_FORMAT} {tokenizers.__version__}".encode())
    texts = chain(tokens, ["merges"], file.strings("tokenizer.ggml.merges"))
    digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
    for key in ("scores", "token_type"):
        digest.update(file.numbers(f"tokenizer.ggml.{key}").tobytes())
    for key in ("add_bos_token", "add_space_prefix", "bos_token_id", "unknown_token_id"):
        digest.update(f"{key}={file.metadata.get(f'tokenizer.ggml.{key}')};".encode())
    return digest.hexdigest()[:32]


def _sentencepiece(file: GgufFile, tokens: list[str]) -> tokenizers.Tokenizer:
    tokens = _marked_spaces(tokens, file.numbers("tokenizer.ggml.token_type").tolist())
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = _listed_merges(file, vocab) or _merges_from_scores(file, tokens)
    unknown_id = _token_id(file, "unknown", tokens)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=None if unknown_id is None else tokens[unknown_id],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE_MARK)]
    cleanup: list[Any] = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.flag("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE_MARK))
        cleanup.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(cleanup)
    _add_whole_tokens(backend, file, tokens)
    _add_bos(backend, file, tokens, default=True)
    return backend


def _marked_spaces(tokens: list[str], types: list[int]) -> list[str]:
    """Undo the converter's spelling of user-defined tokens, which has real spaces for marks."""
    if len(types) != len(tokens):
        return tokens
    return [
        token.replace(" ", SPACE_MARK) if kind == _USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]


def _merges_from_scores(file: GgufFile, tokens: list[str]) -> list[tuple[str, str]]:
    """Return every way to make a piece of two pieces, best score of the result first.

    SentencePiece joins the adjacent pair whose union scores best, so a union's score is the rank of
    the merges that make it.
    """
    scores = file.numbers("tokenizer.ggml.scores").tolist()
    types = file.numbers("tokenizer.ggml.token_type").tolist() or [_NORMAL] * len(tokens)
    if len(scores) != len(tokens) or len(types) != len(tokens):
        raise ModelFormatError(f"{file.path}: {len(tokens)} tokens, {len(scores)} scores and {len(types)} token types")
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    order = sorted(range(len(tokens)), key=lambda index: -scores[index])
    merges: list[tuple[str, str]] = []
    for index in order:
        token = tokens[index]
        if types[index] != _NORMAL:
            continue
        for cut in range(len(token) - 1, 0, -1):
            left = token[:cut]
            if left in pieces and (right := token[cut:]) in pieces:
                merges.append((left, right))
    return merges


# ----------------------------------------------------------------------------------------- shared


def _add_whole_tokens(backend: tokenizers.Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    """Control tokens become special, user-defined ones are only never cut.

    A mark stands for a space, so tokens with marks are looked for after normalisation, which makes them.
    """
    types = file.numbers("tokenizer.ggml.token_type").tolist()
    if types and len(types) != len(tokens):
        raise ModelFormatError(f"{file.path}: {len(tokens)} tokens but {len(types)} token types")
    added = [
        AddedToken(token, normalized=kind == _USER_DEFINED and SPACE_MARK in token, special=kind != _USER_DEFINED)
        for token, kind in zip(tokens, types, strict=False)
        if token and (kind in (_CONTROL, _USER_DEFINED) or kind == _UNKNOWN)
    ]
    backend.add_tokens([token for token in added if not token.special])
    backend.add_special_tokens([token for token in added if token.special])


def _add_bos(backend: tokenizers.Tokenizer, file: GgufFile, tokens: list[str], default: bool) -> None:
    bos_id = _token_id(file, "bos", tokens)
    if bos_id is None or not file.flag("tokenizer.ggml.add_bos_token", default):
        return
    bos = tokens[bos_id]
    if bos in ("$A", "$B"):
        raise ModelFormatError(f"{file.path}: the BOS token is called {bos}")
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, bos_id)]
    )
