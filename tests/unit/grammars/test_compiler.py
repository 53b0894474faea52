from __future__ import annotations

import itertools
import json
import threading

import pytest

from butterfly.errors import InvalidRequestError, RequestFailedError
from butterfly.grammars import GrammarCompiler
from butterfly.specs import GrammarKind, GrammarSpec
from tests.unit.grammars.drawing import ByteVocabulary, allowed

VOCABULARY = ByteVocabulary(words=[*(bytes(word) for word in itertools.product(b"ab", repeat=6)), b'{"', b'": '])
END = min(VOCABULARY.special_ids)
COMPILER = GrammarCompiler(VOCABULARY, (END,), VOCABULARY.vocab_size)
A = ord("a")


def _grammar(kind: GrammarKind, text: str) -> GrammarSpec:
    return GrammarSpec(kind=kind, text=text, param="guided_test")


def _first(kind: GrammarKind, text: str) -> list[int]:
    return allowed(COMPILER.compile(_grammar(kind, text)).mask())


REFUSED: list[tuple[GrammarKind, str, str]] = [
    ("json_schema", "{", "not JSON"),
    ("json_schema", "", "not JSON"),
    ("json_schema", "[]", "a schema is a JSON object"),
    ("json_schema", "false", "a schema is a JSON object"),
    ("json_schema", '{"minimum": NaN}', "NaN is no JSON number"),
    ("json_schema", '{"minimum": 1e999}', "Out of range"),
    ("json_schema", '{"const": "\\ud800"}', "lone surrogate"),
    ("json_schema", '{"type": "objekt"}', "Invalid type: objekt"),
    ("json_schema", '{"not": {"type": "string"}}', "Unimplemented .*not"),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json_schema", '{"type": "array", "contains": {}}', "contains"),
    ("json_schema", '{"if": {}, "then": {}}', "if.*then"),
    ("json_schema", '{"type": "object", "dependentRequired": {"a": ["b"]}}', "dependentRequired"),
    ("json_schema", '{"type": "object", "propertyNames": {"pattern": "^a"}}', "propertyNames"),
    ("json_schema", '{"type": "string", "format": "color"}', "Unknown format: color"),
    ("json_schema", '{"type": "string", "pattern": "(?=a)"}', "look-ahead"),
    ("json_schema", '{"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}', "oneOf .*use anyOf"),
    ("json_schema", '{"$ref": "http://example.com/schema.json"}', "does not fetch"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable"),
    ("json_schema", '{"$ref": "#"}', "no output of this model can match it"),
    ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, "nested too deeply|recursion"),
    ("json_schema", '{"items":' * 200 + "{}" + "}" * 200, "recursion limit"),
    ("regex", "(ab", "Rust's regex syntax.*unclosed group"),
    ("regex", "(?=a)b", "look-ahead"),
    ("regex", "(a)\\1", "backreferences"),
    ("regex", "\\bfoo", "lookarounds"),
    ("regex", "a\\", "a lone backslash"),
    ("regex", "[^\\s\\S]", "no output of this model can match it"),
    ("regex", "(" * 100_000 + "a" + ")" * 100_000, "nested"),
    ("regex", "(?-u:\\xff)", "invalid UTF-8"),
    ("choice", "[]", "at least one string"),
    ("choice", '["a", 1]', "at least one string"),
    ("choice", '"a"', "at least one string"),
    ("choice", "a, b", "not JSON"),
    ("choice", '["\\ud800"]', "lone surrogate"),
    ("lark", "", "no start rule"),
    ("lark", 'start: "a', "llguidance's dialect of Lark.*line 1, column 10"),
    ("lark", 'start: "a"\n  | nowhere', "line 1, column 8: .*nowhere"),
    ("lark", 'start: start "a"', "no output of this model can match it"),
    ("lark", "start: " + "(" * 50_000 + '"a"' + ")" * 50_000, "too deeply nested"),
    ("lark", '{"grammars": [{"json_schema": {"x-guidance": {"lenient": true}}}]}', "expecting rule"),
    ("lark", 'start: a{1000}\n%ignore /a/\na: b{1000}\nb: "x"{1000} <unknown>', "unknown"),
    ("lark", "start: \ud800", "lone surrogate"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), REFUSED)
def test_what_cannot_be_enforced_is_refused_with_the_name_of_the_field(
    kind: GrammarKind, text: str, reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        COMPILER.compile(_grammar(kind, text))

    assert caught.value.param == "guided_test"
    assert str(caught.value).startswith("guided_test: the ")
    assert " cannot be used: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_text_that_is_too_long_is_refused() -> None:
    longest = json.dumps(["a" * (256 * 1024 - 4)])

    assert _first("choice", longest)
    with pytest.raises(InvalidRequestError, match=r"guided_test: .* 262145 bytes; at most 262144"):
        COMPILER.compile(_grammar("choice", longest + " "))


def test_a_grammar_that_is_too_large_is_refused() -> None:
    properties = {f"property{number}": {"type": "string"} for number in range(3000)}

    with pytest.raises(InvalidRequestError, match="grammar size"):
        COMPILER.compile(_grammar("json_schema", json.dumps({"type": "object", "properties": properties})))


def test_a_long_chain_of_references_needs_no_more_stack_than_there_is() -> None:
    chain = {str(number): {"$ref": f"#/$defs/{number + 1}"} for number in range(5000)}
    schema = {"$defs": {**chain, "5000": {"type": "null"}}, "$ref": "#/$defs/0"}
    assert _first("json_schema", json.dumps(schema, separators=(",", ":"))) == [ord("n")]

    rules = "\n".join(f"r{number}: r{number + 1}" for number in range(5000))
    assert _first("lark", f'start: r0\n{rules}\nr5000: "x"') == [ord("x")]


@pytest.mark.parametrize("text", ["start: /a+/ /[^\\s\\S]/", "start: /a{1000000000}/", "start: /a+/ <call> start"])
def test_what_a_grammar_leaves_no_choice_about_is_not_written_out(text: str) -> None:
    assert A in _first("lark", text)
    assert A in _first("lark", f'%llguidance {{"no_forcing": false}}\n{text}')


def test_a_schema_cannot_loosen_how_it_is_read() -> None:
    loose = {"not": {"type": "string"}, "x-guidance": {"lenient": True}}
    with pytest.raises(InvalidRequestError, match="not"):
        COMPILER.compile(_grammar("json_schema", json.dumps(loose)))

    matcher = COMPILER.compile(
        _grammar("json_schema", json.dumps({"type": "object", "x-guidance": {"whitespace_pattern": "x+"}}))
    )
    matcher.accept(ord("{"))
    assert ord("x") not in allowed(matcher.mask())


def test_the_schema_true_is_any_json() -> None:
    assert _first("json_schema", "true") == _first("json_schema", "{}")


def test_the_empty_output_can_be_asked_for() -> None:
    assert _first("regex", "") == [END]
    assert _first("choice", '[""]') == [END]
    assert _first("choice", '["", "a"]') == [A, END]


@pytest.mark.parametrize("eos_token_ids", [(), (VOCABULARY.vocab_size,), (-1,)])
def test_without_an_end_token_there_are_no_grammars(eos_token_ids: tuple[int, ...]) -> None:
    compiler = GrammarCompiler(VOCABULARY, eos_token_ids, VOCABULARY.vocab_size)

    with pytest.raises(InvalidRequestError, match="guided_test: this model names no end token"):
        compiler.compile(_grammar("json_object", ""))


def test_any_thread_may_compile() -> None:
    compiler = GrammarCompiler(VOCABULARY, (END,), VOCABULARY.vocab_size)
    found: dict[int, list[int]] = {}

    def compile_two(number: int) -> None:
        compiler.compile(_grammar("json_object", ""))
        found[number] = allowed(compiler.compile(_grammar("choice", json.dumps([chr(number)]))).mask())

    threads = [threading.Thread(target=compile_two, args=(number,)) for number in range(48, 56)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {number: [number] for number in range(48, 56)}


def test_grammars_that_were_forgotten_are_compiled_again() -> None:
    for _ in range(2):
        for number in range(48, 48 + 40):
            assert _first("regex", f"\\x{number:02x}") == [number]


def test_a_thread_that_starts_afterwards_has_its_usual_stack() -> None:
    _first("regex", "another one")

    assert threading.stack_size() == 0


def test_a_grammar_whose_states_are_used_up_is_compiled_again() -> None:
    # The 200 characters after an `a` that may be the last but 200 are all to be remembered: almost every token is a new
    # state of the lexer, and the copies of a compiled grammar share their states.
    grammar = _grammar("regex", "(a|b)*a(a|b){200}c")
    words = [
        token_id
        for token_id in range(256, VOCABULARY.vocab_size)
        if set(VOCABULARY.token_bytes(token_id)) <= set(b"ab")
    ]
    compiler = GrammarCompiler(VOCABULARY, (END,), VOCABULARY.vocab_size)
    matcher = compiler.compile(grammar)

    def use_up() -> None:
        state = 1
        while True:
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
            matcher.accept(words[(state >> 16) % len(words)])
            matcher.mask()

    with pytest.raises(RequestFailedError, match=r"guided_test: .*too many states"):
        use_up()

    assert allowed(compiler.compile(grammar).mask()) == [A, A + 1, *words]
