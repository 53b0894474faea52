from __future__ import annotations

import json
import zlib

import pytest

from butterfly.errors import RequestFailedError
from butterfly.grammars import GrammarCompiler, Matcher
from butterfly.specs import GrammarKind, GrammarSpec
from tests.unit.grammars.drawing import ByteVocabulary, allowed

VOCABULARY = ByteVocabulary(words=[b"ab", b"abc", b"<end>"])
END, STOP, CALL = sorted(VOCABULARY.special_ids)
A, B, C = b"abc"
COMPILER = GrammarCompiler(VOCABULARY, (END, STOP), VOCABULARY.vocab_size)


def _matcher(kind: GrammarKind, text: str, *tokens: int) -> Matcher:
    matcher = COMPILER.compile(GrammarSpec(kind=kind, text=text, param="guided_test"))
    for token_id in tokens:
        matcher.accept(token_id)
    return matcher


def _choice(*choices: str) -> str:
    return json.dumps(choices)


def test_every_token_that_fits_is_allowed_and_no_other() -> None:
    matcher = _matcher("choice", _choice("abc", "b"))

    assert allowed(matcher.mask()) == [A, B, VOCABULARY.id_of(b"ab"), VOCABULARY.id_of(b"abc")]


def test_end_tokens_are_allowed_exactly_where_the_output_matches() -> None:
    matcher = _matcher("choice", _choice("a", "ab"))
    assert allowed(matcher.mask()) == [A, VOCABULARY.id_of(b"ab")]

    matcher.accept(A)
    assert allowed(matcher.mask()) == [B, END, STOP]

    matcher.accept(B)
    assert allowed(matcher.mask()) == [END, STOP]
    assert not matcher.is_finished


@pytest.mark.parametrize("end", [END, STOP])
def test_any_end_token_ends_the_output(end: int) -> None:
    matcher = _matcher("choice", _choice("a", "ab"), A, end)

    assert matcher.is_finished
    assert allowed(matcher.mask()) == [END, STOP]


def test_after_the_end_only_ends_may_follow() -> None:
    matcher = _matcher("choice", _choice("a", "ab"), A, END)

    matcher.accept(STOP)
    with pytest.raises(RequestFailedError, match="forbids token 98"):
        matcher.accept(B)


@pytest.mark.parametrize("token", [C, END, CALL, -1, VOCABULARY.vocab_size, 2**40])
def test_a_token_that_the_mask_forbids_is_an_error(token: int) -> None:
    matcher = _matcher("choice", _choice("ab"))

    with pytest.raises(RequestFailedError, match=rf"^guided_test: the grammar forbids token {token}, "):
        matcher.accept(token)


def test_a_forbidden_token_changes_nothing() -> None:
    matcher = _matcher("choice", _choice("ab"))
    with pytest.raises(RequestFailedError):
        matcher.accept(C)

    matcher.accept(A)
    assert allowed(matcher.mask()) == [B]


def test_a_dead_end_is_an_error_that_says_so() -> None:
    matcher = _matcher("lark", 'start: "a" NOTHING\nNOTHING: /[^\\s\\S]/')
    assert allowed(matcher.mask()) == [A]

    matcher.accept(A)
    with pytest.raises(
        RequestFailedError,
        match=r"^guided_test: the grammar cannot be followed .*no output of this model can match it$",
    ):
        matcher.mask()


def test_a_grammar_that_becomes_too_complex_is_an_error() -> None:
    rules = "\n".join(f"r{number}: r{number + 1}? r{number + 1}?" for number in range(800))
    matcher = _matcher("lark", f'start: "a" <call> r0 "z"\n{rules}\nr800: "x"?')
    matcher.accept(A)
    assert allowed(matcher.mask()) == [CALL]

    with pytest.raises(
        RequestFailedError, match=r"^guided_test: the grammar cannot be followed any further: .*(row|items)"
    ):
        matcher.accept(CALL)
    with pytest.raises(RequestFailedError, match=r"^guided_test: the grammar cannot be followed any further: "):
        matcher.mask()


def test_a_special_token_is_never_taken_for_its_spelling() -> None:
    matcher = _matcher("choice", _choice("<end>"))
    spelled = VOCABULARY.special_ids.isdisjoint(allowed(matcher.mask()))

    assert spelled
    for byte in b"<end>":
        matcher.accept(byte)
    assert allowed(matcher.mask()) == [END, STOP]


def test_an_end_token_that_a_grammar_names_ends_the_output() -> None:
    matcher = _matcher("lark", 'start: "a" <stop> "b"', A)
    assert allowed(matcher.mask()) == [STOP]

    matcher.accept(STOP)
    assert matcher.is_finished
    assert allowed(matcher.mask()) == [END, STOP]


def test_special_tokens_that_a_grammar_names_are_allowed_there() -> None:
    matcher = _matcher("lark", 'start: <call> "a"')
    assert allowed(matcher.mask()) == [CALL]

    matcher.accept(CALL)
    assert allowed(matcher.mask()) == [A]


def test_the_mask_stays_until_a_token_is_accepted() -> None:
    matcher = _matcher("choice", _choice("ab"))

    assert matcher.mask() == matcher.mask()


def test_matchers_of_one_grammar_go_their_own_ways() -> None:
    first, second = (_matcher("choice", _choice("ab", "ba")) for _ in range(2))

    first.accept(A)

    assert allowed(first.mask()) == [B]
    assert allowed(second.mask()) == [A, B, VOCABULARY.id_of(b"ab")]


@pytest.mark.parametrize("vocab_size", [VOCABULARY.vocab_size + 1, VOCABULARY.vocab_size + 100, 1000])
def test_a_model_with_more_tokens_than_the_tokenizer(vocab_size: int) -> None:
    matcher = GrammarCompiler(VOCABULARY, (END, vocab_size - 1), vocab_size).compile(
        GrammarSpec(kind="regex", text="(?s:.)*")
    )

    mask = matcher.mask()

    assert len(zlib.decompress(mask)) == -(-vocab_size // 8)
    assert END in allowed(mask)
    assert max(allowed(mask)) < VOCABULARY.vocab_size


def test_a_model_with_fewer_tokens_than_the_tokenizer() -> None:
    compiler = GrammarCompiler(VOCABULARY, (C, END), vocab_size=100)  # neither words nor special tokens
    matcher = compiler.compile(GrammarSpec(kind="choice", text=_choice("ab")))

    assert len(zlib.decompress(matcher.mask())) == 13
    assert allowed(matcher.mask()) == [A]
    matcher.accept(A)
    matcher.accept(B)
    assert allowed(matcher.mask()) == [C]


def test_tokens_with_the_same_bytes_are_allowed_and_accepted_together() -> None:
    vocabulary = ByteVocabulary(words=[b"a", b"b", b"a"])
    twins = [A, 256, 258]
    compiler = GrammarCompiler(vocabulary, sorted(vocabulary.special_ids)[:1], vocabulary.vocab_size)

    for twin in twins:
        matcher = compiler.compile(GrammarSpec(kind="choice", text=_choice("ab")))
        assert allowed(matcher.mask()) == twins
        matcher.accept(twin)
        assert allowed(matcher.mask()) == [B, 257]
