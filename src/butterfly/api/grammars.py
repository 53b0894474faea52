"""What every output of a call must match: `response_format`, and vLLM's ways to say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue
from pydantic_core import from_json

from butterfly.api.checked import Checked, wrong
from butterfly.errors import InvalidRequestError
from butterfly.specs import GrammarKind, GrammarSpec


def _schema_of(value: object) -> object:
    """vLLM takes a schema as text too."""
    if not isinstance(value, str):
        return value
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        raise wrong("a schema that is sent as text must be JSON") from None


_Schema = dict[str, JsonValue]
_SchemaOrText = Annotated[_Schema, BeforeValidator(_schema_of, json_schema_input_type=_Schema | str)]
_Choices = Annotated[list[str], Field(min_length=1)]


class JsonSchemaBody(Checked):
    name: str | None = None
    description: str | None = None
    schema_: Annotated[_Schema, Field(alias="schema")]
    strict: bool | None = None  # accepted: a schema is always enforced


class ResponseFormat(Checked):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class StructuredOutputs(Checked):
    """vLLM's: exactly one of these."""

    json_: Annotated[_SchemaOrText | None, Field(alias="json")] = None
    regex: str | None = None
    choice: _Choices | None = None
    grammar: Annotated[str | None, Field(description="In llguidance's dialect of Lark.")] = None
    json_object: bool | None = None


class GrammarFields(Checked):
    """The fields of a body of which at most one may ask for a grammar."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: _SchemaOrText | None = None
    guided_regex: str | None = None
    guided_choice: _Choices | None = None
    guided_grammar: str | None = None


def grammar_of(body: GrammarFields) -> GrammarSpec | None:
    """Return what the output must match, if anything. Raises InvalidRequestError for more than one wish."""
    asked = list(_asked(body))
    if len(asked) > 1:
        raise InvalidRequestError(
            f"{asked[1].param} cannot be combined with another grammar ({asked[0].param}); send one", asked[1].param
        )
    return asked[0] if asked else None


def _asked(body: GrammarFields) -> Iterator[GrammarSpec]:
    if body.response_format is not None:
        yield from _of_response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _of_structured_outputs(body.structured_outputs)
    yield from _of_texts("json_schema", body.guided_json, "guided_json")
    yield from _of_texts("regex", body.guided_regex, "guided_regex")
    yield from _of_texts("choice", body.guided_choice, "guided_choice")
    yield from _of_texts("lark", body.guided_grammar, "guided_grammar")


def _of_response_format(format: ResponseFormat) -> Iterator[GrammarSpec]:
    param = "response_format"
    if format.type == "json_object":
        yield GrammarSpec(kind="json_object", param=param)
    if format.type == "json_schema":
        if format.json_schema is None:
            raise InvalidRequestError(f"{param}.json_schema is missing", f"{param}.json_schema")
        yield from _of_texts("json_schema", format.json_schema.schema_, param)


def _of_structured_outputs(outputs: StructuredOutputs) -> Iterator[GrammarSpec]:
    param = "structured_outputs"
    asked = [
        *_of_texts("json_schema", outputs.json_, param),
        *_of_texts("regex", outputs.regex, param),
        *_of_texts("choice", outputs.choice, param),
        *_of_texts("lark", outputs.grammar, param),
    ]
    if outputs.json_object:
        asked.append(GrammarSpec(kind="json_object", param=param))
    if len(asked) != 1:
        raise InvalidRequestError(f"{param}: send exactly one of json, regex, choice, grammar, json_object", param)
    yield asked[0]


def _of_texts(kind: GrammarKind, wish: object, param: str) -> Iterator[GrammarSpec]:
    """A wish is a text, or something to write as compact JSON, its keys in the order they were sent."""
    if wish is None:
        return
    try:
        text = wish if isinstance(wish, str) else _compact_json(wish)
    except ValueError:
        raise InvalidRequestError(f"{param}: a number in it is no JSON (NaN or infinity)", param) from None
    yield GrammarSpec(kind=kind, text=text, param=param)


def _compact_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
