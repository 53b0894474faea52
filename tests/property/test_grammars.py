"""Whatever is drawn from the masks of a real tokenizer matches the grammar."""

from __future__ import annotations

import ast
import json
import re
from functools import cache

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.grammars import GrammarCompiler
from butterfly.models import Model, open_model
from butterfly.specs import GrammarKind, GrammarSpec
from tests.unit.grammars.drawing import Way, allowed, draw_output

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32)
NUM_FREE = st.integers(0, 60)  # tokens that are drawn before the output hurries to its end


@cache
def _model(name: str) -> Model:
    return open_model(name)


@cache
def _compiler(name: str) -> GrammarCompiler:
    model = _model(name)
    return GrammarCompiler(model.tokenizer, model.eos_token_ids, model.spec.vocab_size)


def _draw(
    kind: GrammarKind,
    text: str,
    seed: int,
    num_free: int = 40,
    *,
    model: str = "smollm2",
    in_text: str = '"1',  # the digit, for a pattern that wants some
    between: str = '}]",:',
) -> str:
    tokenizer = _model(model).tokenizer
    way = Way(
        _model(model).eos_token_ids,
        *([tokenizer.encode(char, add_special_tokens=False)[0] for char in wishes] for wishes in (in_text, between)),
    )
    matcher = _compiler(model).compile(GrammarSpec(kind=kind, text=text))
    return draw_output(matcher, tokenizer.token_bytes, way, seed, num_free)


def _is_spelled_by_the_model(char: str) -> bool:
    """SmolLM2's vocabulary lacks some control characters and the first bytes of rare planes."""
    tokenizer = _model("smollm2").tokenizer
    return tokenizer.decode(tokenizer.encode(char, add_special_tokens=False)) == char


CHARACTERS = st.characters(exclude_categories=["Cs"]).filter(_is_spelled_by_the_model)


# ------------------------------------------------------------------------------------------- JSON

NAMES = st.sampled_from(["name", "a", "b c", 'say "x"', "größe", "路", "\n", ""])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-1000, 1000), st.text(CHARACTERS, max_size=5))
LEAVES = st.one_of(
    st.sampled_from(
        [
            {"type": "null"},
            {"type": "boolean"},
            {"type": "number", "minimum": -5, "maximum": 99.5},
            {"type": ["string", "integer"]},
        ]
    ),
    st.sampled_from(["date", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
    st.tuples(st.integers(0, 5), st.integers(5, 9)).map(
        lambda bounds: {"type": "string", "minLength": bounds[0], "maxLength": bounds[1]}
    ),
    st.tuples(st.integers(-50, 50), st.integers(0, 1000)).map(
        lambda bounds: {"type": "integer", "minimum": bounds[0], "exclusiveMaximum": bounds[0] + bounds[1] + 1}
    ),
    st.sampled_from(["^[a-z]{2,4}$", "[0-9]{3}", "^(x|yz)+$"]).map(lambda text: {"type": "string", "pattern": text}),
    st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    SCALARS.map(lambda value: {"const": value}),
)


def _objects(values: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(NAMES, values, max_size=4).flatmap(
        lambda properties: st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.just(properties),
                "required": st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
            },
            optional={"additionalProperties": st.one_of(st.booleans(), values)},
        )
    )


def _arrays(values: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(
        {"type": st.just("array"), "items": values},
        optional={"minItems": st.integers(0, 2), "maxItems": st.integers(2, 4)},
    )


def _any_of(schemas: tuple[object, ...]) -> dict[str, object]:
    return {"anyOf": list(schemas)}


SCHEMAS = st.recursive(
    LEAVES, lambda inner: st.one_of(_objects(inner), _arrays(inner), st.tuples(inner, inner).map(_any_of)), max_leaves=6
)


@QUICK
@given(SCHEMAS, SEEDS, NUM_FREE)
def test_json_that_validates(schema: dict[str, object], seed: int, num_free: int) -> None:
    text = _draw("json_schema", json.dumps(schema), seed, num_free)

    jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(text))


@QUICK
@given(SEEDS, NUM_FREE)
def test_any_json_object(seed: int, num_free: int) -> None:
    assert isinstance(json.loads(_draw("json_object", "", seed, num_free)), dict)


REFERENCES = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/tree",
}


@QUICK
@given(SEEDS, NUM_FREE)
def test_json_of_a_recursive_schema(seed: int, num_free: int) -> None:
    text = _draw("json_schema", json.dumps(REFERENCES), seed, num_free)

    jsonschema_rs.validate(REFERENCES, json.loads(text))


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_usual_json_is_allowed(indent: int | None) -> None:
    value = {"name": 'A "B"\n', "tags": ["x", "y"], "inner": {"n": -1.5e3, "none": None, "list": [], "map": {}}}
    matcher = _compiler("smollm2").compile(GrammarSpec(kind="json_object"))

    for token_id in _model("smollm2").tokenizer.encode(json.dumps(value, indent=indent), add_special_tokens=False):
        matcher.accept(token_id)

    assert set(allowed(matcher.mask())) == set(_model("smollm2").eos_token_ids)


@QUICK
@given(SEEDS)
def test_white_space_ends_even_for_a_model_that_loves_it(seed: int) -> None:
    tokenizer = _model("smollm2").tokenizer
    matcher = _compiler("smollm2").compile(GrammarSpec(kind="json_schema", text=json.dumps({"const": [1, {"a": 2}]})))
    text = ""
    while not matcher.is_finished:
        candidates = allowed(matcher.mask())
        blank = [token_id for token_id in candidates if tokenizer.token_bytes(token_id).isspace()]
        pool = blank or candidates
        token_id = pool[seed % len(pool)]
        matcher.accept(token_id)
        if not matcher.is_finished:
            text += tokenizer.token_bytes(token_id).decode()

    assert json.loads(text) == [1, {"a": 2}]
    assert all(re.fullmatch(r" |\n {0,20}", gap) for gap in re.findall(r"\s+", text))


# ------------------------------------------------------------------------------------ other kinds

REGEXES = [
    r"[a-z]{1,20}@[a-z]{2,10}\.(com|org)",
    r"\d{4}-\d{2}-\d{2}",
    r"^(yes|no)( because .{1,40})?$",
    r"(?i)true|false",
    r'"[^"/\\]{0,9}"/\\',
    r"[а-яё]{3,8}|[一-龥]{1,4}|😀{2,3}",
    r"a*?b{2}(?:c|)(?P<name>d)",
    r"\s{0,3}[a-zé]{1,5}",
]


@pytest.mark.parametrize("regex", REGEXES)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_text_that_a_regex_matches(regex: str, seed: int) -> None:
    assert re.fullmatch(regex, _draw("regex", regex, seed, in_text="@"))


CHOICES = st.lists(st.text(CHARACTERS, max_size=12), min_size=1, max_size=8)


@QUICK
@given(CHOICES, SEEDS)
def test_one_of_the_choices(choices: list[str], seed: int) -> None:
    assert _draw("choice", json.dumps(choices), seed) in choices


@QUICK
@given(CHOICES)
def test_every_choice_is_possible_in_the_tokens_of_the_model(choices: list[str]) -> None:
    tokenizer = _model("smollm2").tokenizer
    for choice in choices:
        token_ids = tokenizer.encode(choice, add_special_tokens=False)
        if tokenizer.special_ids.isdisjoint(token_ids) and tokenizer.decode(token_ids) == choice:
            matcher = _compiler("smollm2").compile(GrammarSpec(kind="choice", text=json.dumps(choices)))
            for token_id in token_ids:
                matcher.accept(token_id)
            assert set(_model("smollm2").eos_token_ids) <= set(allowed(matcher.mask()))


SUMS = """
start: term ("+" term)*
term: NUMBER | "(" start ")"
NUMBER: /[1-9][0-9]{0,3}/
"""


@QUICK
@given(SEEDS, NUM_FREE)
def test_sums_of_a_grammar_are_sums(seed: int, num_free: int) -> None:
    text = _draw("lark", SUMS, seed, num_free, between=")1")

    assert re.fullmatch(r"[0-9+()]+", text)
    assert ast.parse(text, mode="eval")


# ------------------------------------------------------------------------------ another tokenizer


@pytest.mark.gemma
@settings(max_examples=10, deadline=None)
@given(SCHEMAS, SEEDS)
def test_json_of_a_vocabulary_with_bytes_and_characters(schema: dict[str, object], seed: int) -> None:
    text = _draw("json_schema", json.dumps(schema), seed, model="gemma3-270m")

    jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(text))


@pytest.mark.gemma
def test_the_tokens_that_a_model_has_learned_are_allowed_beside_their_bytes() -> None:
    tokenizer = _model("gemma3-270m").tokenizer
    text = '{\n "a\tb": "é\u2028"}'.replace("\t", "\\t")
    matcher = _compiler("gemma3-270m").compile(GrammarSpec(kind="json_object"))

    for token_id in tokenizer.encode(text, add_special_tokens=False):
        assert token_id in allowed(matcher.mask())
        matcher.accept(token_id)
