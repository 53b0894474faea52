"""The many ways to ask for a grammar, and the one thing they become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from butterfly.api.bodies import CompletionBody, parse_body
from butterfly.api.grammars import grammar_of
from butterfly.errors import InvalidRequestError
from butterfly.specs import GrammarKind, GrammarSpec

SCHEMA = {"type": "object", "properties": {"b": {"const": "é"}, "a": {"type": "integer"}}, "required": ["b"]}
SCHEMA_TEXT = '{"type":"object","properties":{"b":{"const":"é"},"a":{"type":"integer"}},"required":["b"]}'


def _grammar(**fields: Any) -> GrammarSpec | None:
    return grammar_of(parse_body(CompletionBody, json.dumps({"model": "m", "prompt": "x", **fields}).encode()))


@pytest.mark.parametrize(
    ("field", "value", "kind", "text"),
    [
        ("response_format", {"type": "json_object"}, "json_object", ""),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
            "json_schema",
            SCHEMA_TEXT,
        ),
        ("structured_outputs", {"json": SCHEMA}, "json_schema", SCHEMA_TEXT),
        ("structured_outputs", {"json": json.dumps(SCHEMA)}, "json_schema", SCHEMA_TEXT),
        ("structured_outputs", {"regex": r"\d+"}, "regex", r"\d+"),
        ("structured_outputs", {"choice": ["yes", "é"]}, "choice", '["yes","é"]'),
        ("structured_outputs", {"grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ("structured_outputs", {"json_object": True, "regex": None}, "json_object", ""),
        ("guided_json", SCHEMA, "json_schema", SCHEMA_TEXT),
        ("guided_regex", "a|b", "regex", "a|b"),
        ("guided_choice", ["a"], "choice", '["a"]'),
        ("guided_grammar", 'start: "a"', "lark", 'start: "a"'),
    ],
)
def test_every_way_to_ask(field: str, value: object, kind: GrammarKind, text: str) -> None:
    assert _grammar(**{field: value}) == GrammarSpec(kind=kind, text=text, param=field)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"guided_json": None}])
def test_asking_for_nothing(fields: dict[str, Any]) -> None:
    assert _grammar(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a"}, "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_one_wish_at_a_time(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _grammar(**fields)

    assert caught.value.param == param


def test_nan_is_no_schema() -> None:
    body = parse_body(CompletionBody, b'{"model": "m", "prompt": "x", "guided_json": {"minimum": NaN}}')

    with pytest.raises(InvalidRequestError, match="NaN"):
        grammar_of(body)
