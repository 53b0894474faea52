from __future__ import annotations

import math

import pytest

from butterfly.api.choices import ShownToken
from butterfly.api.token_texts import chat_logprobs, completion_logprobs, echo_logprobs, echo_of, spelled
from butterfly.specs import TokenLogprobs
from tests.unit.api.doubles import BOS, EOS, ByteTokenizer, scored


def _id(tokenizer: ByteTokenizer, text: str) -> int:
    (token_id,) = tokenizer.encode(text, add_special_tokens=False)
    return token_id


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"", ""), (b" a", " a"), ("é".encode(), "é"), (b"\xc3", r"bytes:\xc3"), (b"a\xf0\x9f", r"bytes:\x61\xf0\x9f")],
)
def test_parts_of_characters_are_spelled_as_bytes(raw: bytes, text: str) -> None:
    assert spelled(raw) == text


def test_chat_logprobs_have_texts_and_bytes(tokenizer: ByteTokenizer) -> None:
    first, second = tokenizer.encode("é", add_special_tokens=False)
    logprobs = TokenLogprobs(token_id=first, logprob=-0.5, top=((first, -0.5), (second, -math.inf)))

    entry = chat_logprobs(tokenizer, [ShownToken(logprobs, 0, is_silent=False)]).content[0]

    assert (entry.token, entry.logprob, entry.bytes) == (r"bytes:\xc3", -0.5, [0xC3])
    assert [(top.token, top.logprob, top.bytes) for top in entry.top_logprobs] == [
        (r"bytes:\xc3", -0.5, [0xC3]),
        (r"bytes:\xa9", -9999.0, [0xA9]),
    ]


def test_the_token_itself_stands_among_the_likeliest_with_the_same_float(tokenizer: ByteTokenizer) -> None:
    a, b = _id(tokenizer, "a"), _id(tokenizer, "b")
    logprobs = TokenLogprobs(token_id=a, logprob=-1.1, top=((b, -0.2),))

    result = completion_logprobs(tokenizer, [ShownToken(logprobs, 3, is_silent=False)], 10)

    assert result.tokens == ["a"]
    assert result.token_logprobs == [-1.1]
    assert result.top_logprobs == [{"a": -1.1, "b": -0.2}]
    assert result.text_offset == [13]


def test_tokens_that_are_spelled_alike_keep_apart(tokenizer: ByteTokenizer) -> None:
    a = _id(tokenizer, "a")
    logprobs = TokenLogprobs(token_id=300, logprob=-3.0, top=((301, -0.5), (a, -1.0), (302, -2.0)))  # ids of no token

    result = completion_logprobs(tokenizer, [ShownToken(logprobs, 0, is_silent=False)], 0)

    assert result.top_logprobs == [{"": -3.0, "token_id:301": -0.5, "a": -1.0, "token_id:302": -2.0}]


def test_a_probability_of_zero_is_a_number(tokenizer: ByteTokenizer) -> None:
    logprobs = TokenLogprobs(token_id=_id(tokenizer, "a"), logprob=-math.inf)

    result = completion_logprobs(tokenizer, [ShownToken(logprobs, 0, is_silent=False)], 0)

    assert (result.token_logprobs, result.top_logprobs) == ([-9999.0], [{"a": -9999.0}])


@pytest.mark.parametrize(
    ("prompt", "sent", "skip", "text", "offsets"),
    [
        ("ab", True, True, "ab", (0, 0, 1)),  # the special token in front was added
        ("aé", True, True, "aé", (0, 0, 1, 1)),
        (f"{EOS}a", True, True, f"{EOS}a", (0, 0, 5)),  # this one was written
        ("ab", False, True, "ab", (0, 0, 1)),
        ("ab", False, False, f"{BOS}ab", (0, 5, 6)),
        (f"a{EOS}b", False, True, "ab", (0, 0, 1, 1)),
    ],
)
def test_echo(
    tokenizer: ByteTokenizer, prompt: str, sent: bool, skip: bool, text: str, offsets: tuple[int, ...]
) -> None:
    token_ids = tokenizer.encode(prompt)

    echo = echo_of(tokenizer, token_ids, prompt if sent else None, skip_special_tokens=skip)

    assert (echo.text, echo.token_ids) == (text, tuple(token_ids))
    scores = [scored(token_id, 0) for token_id in token_ids[1:]]
    assert tuple(echo_logprobs(tokenizer, echo, scores).text_offset) == offsets


def test_nothing_predicts_the_first_token_of_a_prompt(tokenizer: ByteTokenizer) -> None:
    token_ids = tokenizer.encode("ab")
    echo = echo_of(tokenizer, token_ids, "ab", skip_special_tokens=True)

    result = echo_logprobs(tokenizer, echo, [scored(token_id, 1) for token_id in token_ids[1:]])

    assert result.tokens == [BOS, "a", "b"]
    assert result.token_logprobs[0] is None
    assert result.top_logprobs[0] is None
    for token, logprob, top in zip(result.tokens, result.token_logprobs, result.top_logprobs, strict=True):
        assert logprob is None or (top is not None and top[token] == logprob)
    assert result.text_offset == [0, 0, 1]
