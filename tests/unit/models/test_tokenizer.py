"""Streams, decoders and SentencePiece merges of the tokenizer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from butterfly.errors import InvalidRequestError, ModelFormatError, UnsupportedModelError
from butterfly.folders import CACHE_VARIABLE
from butterfly.models import Tokenizer, open_model
from butterfly.models.gguf_file import read_gguf
from butterfly.models.gguf_tokenizer import PRE_TOKENIZERS, build_tokenizer
from tests.unit.models.samples import llama_metadata, llama_tensors, tiny_llama, write_gguf

SMOLLM2 = open_model("smollm2").tokenizer
BYTES = open_model("random:llama,vocab=256").tokenizer


@given(st.lists(st.integers(0, 49151), max_size=40), st.booleans())
def test_a_stream_adds_up_to_the_whole(ids: list[int], skip: bool) -> None:
    stream = SMOLLM2.stream(skip)
    parts = [stream.step(token_id) for token_id in ids]
    whole = "".join([*parts, stream.flush()])
    assert whole == SMOLLM2.decode(ids, skip_special_tokens=skip)
    assert whole == SMOLLM2.backend.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=60))
def test_any_text_survives_and_no_step_shows_half_a_character(text: str) -> None:
    ids = BYTES.encode(text)
    stream = BYTES.stream()
    parts = [stream.step(token_id) for token_id in ids]
    assert "".join(parts) == text
    assert all(len(part) <= 1 for part in parts)  # each byte completes a character or nothing
    assert stream.flush() == ""


@given(st.binary(max_size=30))
def test_bytes_that_are_no_characters_do_not_stop_the_stream(raw: bytes) -> None:
    stream = BYTES.stream()
    text = "".join([*(stream.step(byte) for byte in raw), stream.flush()])
    assert text == raw.decode("utf-8", "replace")


def test_half_a_character_waits_and_flush_tells() -> None:
    stream = BYTES.stream()
    assert [stream.step(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert stream.step(0xE2) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("token_id", [49152, 10**9, -1])
def test_ids_beyond_the_vocabulary_are_silent(token_id: int) -> None:
    assert SMOLLM2.decode([token_id]) == ""


def test_a_lone_surrogate_is_the_clients_fault() -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate at character 2"):
        SMOLLM2.encode("ab\ud800")


def backend_with(decoder: Any) -> tokenizers.Tokenizer:
    pieces = ["▁a", "▁b", "<0xC3>", "<0xA9>", "c"]
    backend = tokenizers.Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.decoder = decoder
    return backend


LLAMA2_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (LLAMA2_DECODER, "a bécc"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), " a bécc"),
    ],
)
def test_sentencepiece_like_decoders_agree_with_the_library(decoder: Any, expected: str) -> None:
    tokenizer = Tokenizer(backend_with(decoder))
    ids = [0, 1, 2, 3, 4, 4]
    assert tokenizer.decode(ids) == expected == tokenizer.backend.decode(ids)
    stream = tokenizer.stream()
    assert "".join(stream.step(token_id) for token_id in ids) == expected


def test_metaspace_drops_the_first_space_unless_told_otherwise() -> None:
    assert Tokenizer(backend_with(decoders.Metaspace())).decode([0, 1]) == "a b"
    assert Tokenizer(backend_with(decoders.Metaspace(prepend_scheme="never"))).decode([0, 1]) == " a b"


def test_without_a_decoder_tokens_are_words() -> None:
    tokenizer = Tokenizer(backend_with(None))
    assert tokenizer.decode([4, 4, 0]) == "c c ▁a" == tokenizer.backend.decode([4, 4, 0])


def test_other_decoders_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="WordPiece is not supported; supported: byte-level"):
        Tokenizer(backend_with(decoders.WordPiece()))


# ----------------------------------------------------------------------------- built from GGUF files

PIECES = ["a", "b", "c", "▁", "ab", "bc", "abc", "▁a", "▁ab", "cc", "bcc", "▁abcc", "aa", "aaa"]
SCORES = [-50.0, -51.0, -52.0, -53.0, -3.0, -1.0, -7.0, -2.0, -4.0, -6.0, -5.0, -8.0, -9.0, -10.0]


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """Return a small SentencePiece vocabulary: unknown, BOS, EOS, 256 bytes, a user-defined run, PIECES."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "  ", *PIECES]
    types = [2, 3, 3, *([6] * 256), 4, *([1] * len(PIECES))]
    scores = [0.0] * (len(tokens) - len(PIECES)) + SCORES
    metadata = {
        **llama_metadata(),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.merges": None,
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return {key: value for key, value in metadata.items() if value is not None}


def sentencepiece(path: Path, **changes: Any) -> Tokenizer:
    return build_tokenizer(read_gguf(write_gguf(path / "m.gguf", sentencepiece_metadata(**changes), llama_tensors())))


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return sentencepiece(tmp_path_factory.mktemp("spm"), add_space_prefix=False, add_bos_token=False)


def best_first(text: str) -> list[str]:
    """The published algorithm: join the adjacent pair with the best-scoring union, leftmost first, until none."""
    scores = dict(zip(PIECES, SCORES, strict=True))
    parts = list(text.replace(" ", "▁"))
    while True:
        unions = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not unions:
            return parts
        _, index = min(unions)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]


@given(text=st.text(alphabet="abc ", max_size=12).filter(lambda text: "  " not in text))
def test_merges_from_scores_join_as_sentencepiece_does(spaced: Tokenizer, text: str) -> None:
    ids = spaced.encode(text)
    assert [spaced.backend.id_to_token(token_id) for token_id in ids] == best_first(text)
    assert spaced.decode(ids) == text


def test_bytes_stand_in_for_characters_that_are_not_there(spaced: Tokenizer) -> None:
    assert [spaced.backend.id_to_token(i) for i in spaced.encode("aé")] == ["a", "<0xC3>", "<0xA9>"]
    assert spaced.decode(spaced.encode("aé🎉b")) == "aé🎉b"


def test_user_defined_runs_are_taken_whole(spaced: Tokenizer) -> None:
    run = spaced.token_to_id("▁▁")
    assert spaced.encode("a  b") == [spaced.token_to_id("a"), run, spaced.token_to_id("b")]
    assert spaced.decode(spaced.encode("a     b")) == "a     b"


def test_the_space_prefix_and_bos_are_defaults_of_sentencepiece(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    assert tokenizer.encode("ab") == [1, tokenizer.token_to_id("▁ab")]
    assert tokenizer.encode("ab", add_special_tokens=False) == [tokenizer.token_to_id("▁ab")]
    assert tokenizer.decode(tokenizer.encode("ab b")) == "ab b"


def test_scores_of_another_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="2 scores"):
        sentencepiece(tmp_path, scores=[0.0, 1.0])


def test_a_slow_build_is_kept_and_a_damaged_copy_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("butterfly.models.gguf_tokenizer._SLOW_BUILD_S", -1.0)
    built = sentencepiece(tmp_path)
    (kept,) = (tmp_path / "cache" / "tokenizers").iterdir()
    loaded = sentencepiece(tmp_path)
    assert loaded.backend.to_str() == built.backend.to_str()
    kept.write_text("{")
    assert sentencepiece(tmp_path).encode("abc") == built.encode("abc")
    assert "damaged" in caplog.text
    assert tokenizers.Tokenizer.from_file(str(kept)).to_str() == built.backend.to_str()


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr("butterfly.models.gguf_tokenizer._SLOW_BUILD_S", -1.0)
    assert sentencepiece(tmp_path).encode("ab")
    assert f"set {CACHE_VARIABLE}" in caplog.text


# --------------------------------------------------------------------------------- pre-tokenizers


def cut(path: Path, pre: str, text: str) -> list[str]:
    tokenizer = build_tokenizer(read_gguf(tiny_llama(path / "m.gguf", tokenizer__ggml__pre=pre)))
    pieces = tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in pieces]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["I", "'m", " 2024", "!!", "\n", "\n", "x"]),
        ("smollm", ["I", "'m", " ", "2", "0", "2", "4", "!!", "\n", "\n", "x"]),
        ("llama-bpe", ["I", "'m", " ", "202", "4", "!!\n\n", "x"]),
        ("qwen2", ["I", "'m", " ", "2", "0", "2", "4", "!!\n\n", "x"]),
        ("tekken", ["I", "'m", " ", "2", "0", "2", "4", "!!\n\n", "x"]),
    ],
)
def test_text_is_cut_as_the_vocabulary_was_trained(tmp_path: Path, pre: str, expected: list[str]) -> None:
    assert cut(tmp_path, pre, "I'm 2024!!\n\nx") == expected


def test_tekken_cuts_between_small_and_capital_letters(tmp_path: Path) -> None:
    assert cut(tmp_path, "tekken", "camelCase/") == ["camel", "Case", "/"]


def test_an_unknown_pre_tokenizer_warns_and_uses_the_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cut(tmp_path, "martian", "a 12") == cut(tmp_path, "default", "a 12")
    assert "unknown pre-tokenizer 'martian'" in caplog.text
    assert "martian" not in PRE_TOKENIZERS


def test_llama3_adds_a_bos_unless_the_file_says_no(tmp_path: Path) -> None:
    stated: dict[str, Any] = {"tokenizer__ggml__pre": "llama-bpe", "tokenizer__ggml__bos_token_id": 257}
    with_bos = open_model(str(tiny_llama(tmp_path / "a.gguf", **stated))).tokenizer
    assert with_bos.encode("a") == [257, ord("a")]
    without = open_model(str(tiny_llama(tmp_path / "b.gguf", **stated, tokenizer__ggml__add_bos_token=False))).tokenizer
    assert without.encode("a") == [ord("a")]


def test_control_tokens_are_hidden_and_user_defined_ones_shown(tmp_path: Path) -> None:
    tokenizer = open_model(str(tiny_llama(tmp_path / "m.gguf"))).tokenizer
    ids = tokenizer.encode("<|im_start|>ab<think>")
    assert ids == [257, 256, 259]
    assert tokenizer.decode(ids) == "ab<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>ab<think>"
