"""Every kind of grammar, said in the library's dialect of Lark; and the library's complaints, said in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from llguidance import regex_to_lark

from butterfly.errors import InvalidRequestError
from butterfly.specs import GrammarKind, GrammarSpec

MAX_TEXT_BYTES = 256 * 1024

WHITESPACE = r"( |\n {0,20})"
"""At most once wherever JSON allows white space: a space, or a new line and its indentation.

Enough for compact and for indented JSON, and it ends.
"""

_JSON_OPTIONS = {
    "whitespace_pattern": WHITESPACE,
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,  # `oneOf` is not `anyOf`: refused where the difference matters
    "lenient": False,  # what cannot be enforced is refused, not ignored
}

# The library would write out whatever a grammar leaves no choice about, before the mask of the next token: for ever
# if it has no end (`a+` before something impossible), and all of a{1000000000}. It comes last, so that it holds.
_LAST_WORD = '\n%llguidance {"no_forcing": true, "allow_invalid_utf8": false}\n'

_WHAT: dict[GrammarKind, str] = {
    "json_object": "the grammar",
    "json_schema": "the JSON schema",
    "regex": "the regex (read as Rust's regex syntax: no look-around, no back-references)",
    "choice": "the list of choices",
    "lark": "the grammar (read as llguidance's dialect of Lark)",
}
_LONGEST_REASON = 300  # characters
_IN_OTHER_WORDS = (
    (r"^error: ", ""),
    (r"^failed to compile JSON schema: ", ""),
    (r'^failed to parse "%json": ', ""),
    (r"\. Enable 'coerce_one_of' .*$", "; use anyOf"),
    (r"^NoExtensionBias$", "no output of this model can match it"),
)


def library_grammar(grammar: GrammarSpec) -> str:
    """Return the grammar as the library takes it. Raises InvalidRequestError for what is wrong at first sight."""
    try:
        num_bytes = len(grammar.text.encode())
    except UnicodeEncodeError as error:
        raise unusable(grammar, f"it holds a lone surrogate at character {error.start}") from None
    if num_bytes > MAX_TEXT_BYTES:
        raise unusable(grammar, f"it has {num_bytes} bytes; at most {MAX_TEXT_BYTES} are allowed")
    try:
        lark = _TRANSLATORS[grammar.kind](grammar.text)
    except (ValueError, RecursionError) as error:
        raise unusable(grammar, str(error)) from None
    return json.dumps({"grammars": [{"lark_grammar": lark + _LAST_WORD}]})


def unusable(grammar: GrammarSpec, reason: str) -> InvalidRequestError:
    """Return the error that says why a grammar is refused."""
    return InvalidRequestError(f"{grammar.param}: {_WHAT[grammar.kind]} cannot be used: {reason}", grammar.param)


def one_line(complaint: str, kind: GrammarKind) -> str:
    """Return the reason in a complaint of the library, without what it quotes of our text."""
    lines = [line for line in complaint.replace("<non-verbose/>", "").splitlines() if line.strip(" ^")]
    said = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "no reason given")
    # Only who writes in the library's own language knows the lines that it counts.
    said = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: " if kind == "lark" else "", said)
    for boilerplate, replacement in _IN_OTHER_WORDS:
        said = re.sub(boilerplate, replacement, said)
    if len(said) > _LONGEST_REASON:
        half = _LONGEST_REASON // 2
        said = f"{said[:half]} ... {said[-half:]}"
    return said


def _json_object(text: str) -> str:
    return _json({"type": "object"})


def _json_schema(text: str) -> str:
    schema = _parsed(text)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    return _json(schema)


def _json(schema: dict[str, object]) -> str:
    return f"start: %json {_written({**schema, 'x-guidance': _JSON_OPTIONS})}"


def _regex(text: str) -> str:
    if (len(text) - len(text.rstrip("\\"))) % 2:
        raise ValueError("a lone backslash at its end")
    return f"start: /{regex_to_lark(text, 'd')}/" if text else 'start: ""'


def _choice(text: str) -> str:
    choices = _parsed(text)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("it must be a JSON list of at least one string")
    return "start: CHOICE\nCHOICE: " + " | ".join(_written(choice) for choice in choices)


def _lark(text: str) -> str:
    return text


def _parsed(text: str) -> object:
    try:
        parsed: object = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return parsed


def _written(value: object) -> str:
    """Return JSON that the library reads: in ASCII alone, because it takes some control characters amiss."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds a lone surrogate") from None
    return json.dumps(value, allow_nan=False)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


_TRANSLATORS: dict[GrammarKind, Callable[[str], str]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
}
