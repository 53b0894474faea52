"""Grammars against the library that enforces them, and the parser against every way to cut a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.api.tool_calls import (
    ToolCallDelta,
    ToolCallParser,
    ToolFormat,
    ToolFunction,
    tool_format_of,
    tool_grammar,
    whole_calls,
)
from butterfly.errors import InvalidRequestError
from butterfly.specs import GrammarSpec

CITY: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer"}},
    "required": ["city"],
    "$defs": {"name": {"type": "string"}},
}
WEATHER = ToolFunction("weather", "The weather of a city.", CITY)
NOW = ToolFunction("now")
QUOTED = ToolFunction('say "ä"\\', None, {})
FORMATS: tuple[ToolFormat, ...] = ("hermes", "json")


# ----------------------------------------------------------------------------------------- grammars


class _Bytes:
    """A tokenizer with one token per byte, as llguidance wants it."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@pytest.fixture(scope="module")
def byte_tokens() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def _accepts(tokens: llguidance.LLTokenizer, grammar: GrammarSpec, text: str) -> bool:
    assert grammar.kind == "lark"
    compiled = llguidance.LLMatcher.grammar_from_lark(grammar.text)
    assert not llguidance.LLMatcher.validate_grammar(compiled, tokens)
    matcher = llguidance.LLMatcher(tokens, compiled)
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def _written(format: ToolFormat, *calls: tuple[str, object]) -> str:
    """An answer that calls, as a model writes it."""
    if format == "hermes":
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"
            for name, arguments in calls
        )
    return "; ".join(
        json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False) for name, arguments in calls
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_required_call_is_any_of_the_tools_with_its_own_arguments(
    format: ToolFormat, byte_tokens: llguidance.LLTokenizer
) -> None:
    grammar = tool_grammar([WEATHER, NOW, QUOTED], format, only=None, parallel=False)

    accepted = [
        _written(format, ("weather", {"city": "Köln </tool_call>", "days": 3})),
        _written(format, ("now", {})),
        _written(format, ('say "ä"\\', {})),
    ]
    refused = [
        _written(format, ("weather", {"days": 3})),
        _written(format, ("weather", {"city": 3})),
        _written(format, ("now", {"city": "Rome"})),
        _written(format, ("other", {})),
        _written(format, ("now", {}), ("now", {})),
        _written(format, ("now", {})) + "!",
        "It is noon.",
        "",
    ]
    assert [text for text in accepted if not _accepts(byte_tokens, grammar, text)] == []
    assert [text for text in refused if _accepts(byte_tokens, grammar, text)] == []


@pytest.mark.parametrize("format", FORMATS)
def test_parallel_calls_may_follow_each_other(format: ToolFormat, byte_tokens: llguidance.LLTokenizer) -> None:
    grammar = tool_grammar([WEATHER, NOW], format, only=None, parallel=True)

    assert _accepts(byte_tokens, grammar, _written(format, ("now", {})))
    assert _accepts(byte_tokens, grammar, _written(format, ("now", {}), ("weather", {"city": "Rome"}), ("now", {})))


@pytest.mark.parametrize("format", FORMATS)
def test_a_named_function_is_called_once_and_no_other(format: ToolFormat, byte_tokens: llguidance.LLTokenizer) -> None:
    grammar = tool_grammar([WEATHER, NOW], format, only="now", parallel=True)

    assert grammar.param == "tool_choice"
    assert _accepts(byte_tokens, grammar, _written(format, ("now", {})))
    assert not _accepts(byte_tokens, grammar, _written(format, ("weather", {"city": "Rome"})))
    assert not _accepts(byte_tokens, grammar, _written(format, ("now", {}), ("now", {})))


@pytest.mark.parametrize(
    ("parameters", "accepted", "refused"),
    [
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}, 1),  # no type said
        ({"type": ["object", "null"], "properties": {}}, {}, None),
        ({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"b": 1}, {}),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "unheard-of"}}}, {"a": "x"}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, {"a": 1}, []),
    ],
)
def test_schemas_that_people_write(
    parameters: dict[str, object], accepted: object, refused: object, byte_tokens: llguidance.LLTokenizer
) -> None:
    grammar = tool_grammar([ToolFunction("f", None, parameters)], "hermes", only=None, parallel=False)

    assert _accepts(byte_tokens, grammar, _written("hermes", ("f", accepted)))
    assert not _accepts(byte_tokens, grammar, _written("hermes", ("f", refused)))


def test_what_cannot_be_asked_for_is_refused_with_its_field() -> None:
    with pytest.raises(InvalidRequestError, match="no tools to choose from") as missing:
        tool_grammar([], "json", only=None, parallel=False)
    with pytest.raises(InvalidRequestError, match="'other' is none of the tools; they are weather, now") as unknown:
        tool_grammar([WEATHER, NOW], "json", only="other", parallel=False)
    with pytest.raises(InvalidRequestError, match="has the type 'object', not 'string'") as no_object:
        tool_grammar([NOW, ToolFunction("f", None, {"type": "string"})], "json", only="f", parallel=False)

    assert missing.value.param == unknown.value.param == "tool_choice"
    assert no_object.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_grammar_allows_the_parser_reads(format: ToolFormat) -> None:
    calls = [("now", {}), ("weather", {"city": 'a "b" </tool_call> {', "days": 2})]

    content, found = _parse(format, [_written(format, *calls)])

    assert content == ""
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


# ------------------------------------------------------------------------------------------ parsing


def _parse(
    format: ToolFormat, pieces: Iterable[str], names: Sequence[str] = ("weather", "now")
) -> tuple[str, list[ToolCallDelta]]:
    parser = ToolCallParser(format, names)
    results = [parser.push(piece) for piece in pieces] + [parser.flush()]
    deltas = [delta for _, calls in results for delta in calls]
    assert parser.has_calls == bool(deltas)
    return "".join(content for content, _ in results), deltas


def _outcome(format: ToolFormat, pieces: Iterable[str]) -> tuple[str, list[tuple[int, str | None, str]]]:
    content, deltas = _parse(format, pieces)
    return content, [(delta.index, delta.name, delta.arguments) for delta in deltas]


CALL = '{"name": "now", "arguments": {"zone": "UTC"}}'
ARGUMENTS = '{"zone": "UTC"}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Just text with < and <tool> in it.", "Just text with < and <tool> in it.", []),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [("now", ARGUMENTS)]),
        (f"<tool_call>{CALL}</tool_call>", "", [("now", ARGUMENTS)]),
        (f"Let me see.\n<tool_call>{CALL}</tool_call>\n", "Let me see.\n", [("now", ARGUMENTS)]),
        (f"\n\n<tool_call>{CALL}</tool_call> Done.", " Done.", [("now", ARGUMENTS)]),
        (f"<tool_call>{CALL}</tool_call>\n" * 2, "", [("now", ARGUMENTS)] * 2),
        (f"<tool_call>\n{CALL}", "", [("now", ARGUMENTS)]),  # the end of the answer ends the call too
        (f"<tool_call>\n{CALL}\n</tool_", "", [("now", ARGUMENTS)]),
        ('<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
        ('<tool_call>{"arguments": {"a": [1, {}]}, "name": "now"}</tool_call>', "", [("now", '{"a": [1, {}]}')]),
        ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
        ('<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("now", '{"a": 1}')]),
        (
            '<tool_call>{"name": "now", "arguments": {"a": "}</tool_call>\\""}}</tool_call>',
            "",
            [("now", '{"a": "}</tool_call>\\""}')],
        ),
    ],
)
def test_hermes(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert _outcome("hermes", [text]) == (content, [(index, *call) for index, call in enumerate(calls)])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        " \n",
        "<tool_call> tags start a call.",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',  # nobody offered it
        '<tool_call>{"name": "now", "arguments": {}} and more</tool_call>',
        '<tool_call>{"name": "now", "arguments": {}}}</tool_call>',
        '<tool_call>{"name": "now", "arguments": {"a": 1]}</tool_call>',
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "now", "arguments": "noon"}</tool_call>',
        '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "now", "arguments": {"a": "line\nbreak"}}</tool_call>',
        '<tool_call>{"name": "now", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "now", "argum',  # max_tokens was reached
        '<tool_call>{"name": "now", "arguments": {"a": "b\\',
        '<tool_call>{"a":' * 3000,
    ],
)
def test_what_is_no_whole_call_comes_back_as_content(text: str) -> None:
    for format in FORMATS:
        assert _outcome(format, [text]) == (text, [])


def test_a_call_after_a_broken_one_is_found() -> None:
    broken = '<tool_call>{"name": "now", '
    good = f"<tool_call>{CALL}</tool_call>"

    assert _outcome("hermes", [broken + good]) == (broken, [(0, "now", ARGUMENTS)])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "now", "parameters": {"a": 1}}', "", ['{"a": 1}']),
        ('\n <|python_tag|> {"name": "now", "parameters": {"a": 1}}\n', "", ['{"a": 1}']),
        ('{"type": "function", "name": "now", "parameters": {}}', "", ["{}"]),
        ('{"name": "now"}; {"name": "now", "arguments": {"b": 2}}', "", ["{}", '{"b": 2}']),
        ('{"name": "now"}\n{"name": "now"};\n{"name": "now"}', "", ["{}"] * 3),
        ('[{"name": "now"}, {"name": "now", "parameters": {"a": 1}}]', "", ["{}", '{"a": 1}']),
        ('{"name": "now"}\nThat is all.', "\nThat is all.", ["{}"]),
        ('{"name": "now"}; {"name": "other"} {"name": "now"}', '; {"name": "other"} {"name": "now"}', ["{}"]),
    ],
)
def test_json(text: str, content: str, calls: list[str]) -> None:
    assert _outcome("json", [text]) == (content, [(index, "now", call) for index, call in enumerate(calls)])


@pytest.mark.parametrize(
    "text",
    [
        'I would say {"name": "now"}',
        '{"name": "Ada", "age": 36}',
        '[{"name": "now"}, {"name": "other"}]',
        "[]",
        "[1] is a footnote",
        "{braces} are prose",
        "<|python_tag|>print(1)",
        "<|python_tag|>",
        '<|python_tag|>{"name": "now"',
        '{"name": "now", "parameters": {"a": "',
    ],
)
def test_json_that_is_no_call_comes_back_as_content(text: str) -> None:
    assert _outcome("json", [text]) == (text, [])


def test_content_is_not_held_back_longer_than_it_could_become_a_call() -> None:
    hermes = ToolCallParser("hermes", ["now"])
    assert [hermes.push(piece)[0] for piece in ("Well", " <", "b", "> <tool_call> no", "thing")] == [
        "Well",
        " ",
        "<b",
        "> <tool_call> no",
        "thing",
    ]
    plain = ToolCallParser("json", ["now"])
    assert [plain.push(piece)[0] for piece in (" ", "{", "b", "races} ", "{")] == ["", "", " {b", "races} ", "{"]


def test_a_call_goes_out_as_soon_as_it_is_whole() -> None:
    parser = ToolCallParser("hermes", ["now"])
    assert parser.push(f"<tool_call>{CALL}\n</tool_call") == ("", [])
    assert not parser.has_calls
    content, [delta] = parser.push(">")
    assert (content, delta.index, delta.name, delta.arguments) == ("", 0, "now", ARGUMENTS)
    assert re.fullmatch("call_[0-9a-f]{24}", delta.id or "")
    assert parser.has_calls


def test_whole_calls_are_openais() -> None:
    deltas = [
        ToolCallDelta(0, "call_a", "now", '{"a"'),
        ToolCallDelta(1, "call_b", "weather", "{}"),
        ToolCallDelta(0, None, None, ": 1}"),
    ]
    assert whole_calls(deltas) == [
        {"id": "call_a", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]


def test_the_format_is_read_from_the_template() -> None:
    assert tool_format_of("{{ '<tool_call>' }}") == "hermes"
    assert tool_format_of("{{ messages }}") == "json"


# ------------------------------------------------------------------------------- every way to cut it

FRAGMENTS = (
    *(f"<tool_call>{CALL}</tool_call>", f"<tool_call>\n{CALL}\n", f"<tool_call>{CALL}{CALL}</tool_call>"),
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "</",
        "<|python_tag|>",
        "<|py",
        CALL,
        '{"name": "other"}',
        '{"name": "now"',
    ),
    *(', "arguments": {"a": ', '"x\\', '"', "{", "}", "[", "]", ";", " ", "\n", "text", "<", "\\", ", ", "1", "é"),
)
ANSWERS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join)


@given(format=st.sampled_from(FORMATS), text=ANSWERS, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_the_result_does_not_depend_on_the_cuts(format: ToolFormat, text: str, cuts: list[int]) -> None:
    whole = _outcome(format, [text])

    assert _outcome(format, text) == whole  # character by character
    places = sorted({min(cut, len(text)) for cut in [0, *cuts, len(text)]})
    assert _outcome(format, [text[a:b] for a, b in pairwise(places)]) == whole


@given(format=st.sampled_from(FORMATS), text=ANSWERS)
def test_nothing_is_lost(format: ToolFormat, text: str) -> None:
    content, calls = _outcome(format, [text])

    if not calls:
        assert content == text
    # Whatever the calls are, content is what else was said, in order.
    remaining = iter(text)
    assert all(character in remaining for character in content)
    for _, name, arguments in calls:
        assert name in ("now", "weather")
        assert isinstance(json.loads(arguments), dict)
