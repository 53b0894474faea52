"""`SamplingParams`: how a prompt is to be answered, checked when it is made."""

from __future__ import annotations

import json
import math
import numbers
from functools import cache
from typing import Annotated, Protocol, get_type_hints, runtime_checkable

import msgspec
from msgspec import Meta

from butterfly.errors import InvalidRequestError
from butterfly.specs import GrammarKind, GrammarSpec, SamplingSpec

MAX_CHOICES = 128  # answers to one prompt
MAX_LOGPROBS = 20  # likeliest tokens reported for one position
_GRAMMAR_FIELDS: dict[str, GrammarKind] = {
    "json_object": "json_object",
    "json_schema": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "lark",
}

_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]
_TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
_NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


@runtime_checkable
class SchemaSource(Protocol):
    """A class that knows its own JSON schema: any pydantic model does."""

    def model_json_schema(self) -> dict[str, object]: ...


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to answer a prompt. Immutable; a wrong value raises InvalidRequestError that names it.

    `max_tokens` is 16 unless said otherwise, as in OpenAI's completions and in vLLM: None means the rest of the
    context, which on a CPU can be minutes for each prompt.
    """

    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1  # answers to each prompt
    max_tokens: Annotated[int, Meta(ge=1)] | None = 16  # of each answer; less where the context ends
    min_tokens: Annotated[int, Meta(ge=0)] = 0  # no end of text and no stop token before
    temperature: Annotated[float, Meta(ge=0)] = 1.0  # 0: always the likeliest token
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] = 0  # -1 and 0: all
    min_p: _Share = 0.0
    seed: int | None = None  # the same gives the same tokens; None: drawn anew for each prompt
    stop: str | list[str] | None = None  # text that ends an answer; of several, the first to be complete
    stop_token_ids: list[_TokenId] | None = None  # besides the model's own end tokens
    ignore_eos: bool = False  # the model's own end tokens end nothing
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0)] = 1.0
    logit_bias: dict[_TokenId, _Bias] | None = None  # token id -> what is added to its logit
    logprobs: _NumLogprobs | None = None  # of every token of the answer, and of so many of the likeliest
    prompt_logprobs: _NumLogprobs | None = None  # the same of the prompt, but for its first token
    json_object: bool = False  # the answer is a JSON object ...
    json_schema: dict[str, object] | str | SchemaSource | None = None  # ... or JSON of this schema or pydantic model
    regex: str | None = None  # ... or matches this
    choice: list[str] | None = None  # ... or is one of these
    grammar: str | None = None  # ... or follows this Lark grammar
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True  # control tokens are no text
    timeout_s: Annotated[float, Meta(gt=0)] | None = None  # seconds since the engine has it; then an error
    priority: int = 0  # smaller numbers first

    def __post_init__(self) -> None:
        for name, hint in _checkable_fields(type(self)).items():
            value = _checked(name, _plain(getattr(self, name)), hint)
            msgspec.structs.force_setattr(self, name, value)
        self._check_seed()
        self._check_stops()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _wrong("min_tokens", f"{self.min_tokens} is more than max_tokens={self.max_tokens}")
        self.grammar_spec()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling_spec(self, seed: int) -> SamplingSpec:
        """What the sampling stage is told, with the `seed` (64 bits) of one answer."""
        return SamplingSpec(
            seed=seed,
            temperature=self.temperature,
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple(sorted((self.logit_bias or {}).items())),
            num_logprobs=self.logprobs,
        )

    def grammar_spec(self) -> GrammarSpec | None:
        """What the answer must match, or None."""
        asked = [name for name in _GRAMMAR_FIELDS if getattr(self, name) not in (None, False)]
        if not asked:
            return None
        if len(asked) > 1:
            raise _wrong(asked[1], f"an answer cannot follow {' and '.join(asked)} at once; give one of them")
        (name,) = asked
        return GrammarSpec(kind=_GRAMMAR_FIELDS[name], text=self._grammar_text(name), param=name)

    def _grammar_text(self, name: str) -> str:
        if name == "json_object":
            return ""
        if name == "json_schema":
            return _schema_text(self.json_schema)
        if name == "choice":
            if not self.choice or not all(self.choice):
                raise _wrong("choice", "give at least one string, and none that is empty")
            return _compact_json(self.choice)
        return str(getattr(self, name))

    def _check_seed(self) -> None:
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise _wrong("seed", f"{self.seed} does not fit 64 bits")

    def _check_stops(self) -> None:
        if not all(self.stops):
            raise _wrong("stop", "an empty string would stop every answer at once")


def _wrong(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}: {problem}", name)


@cache
def _checkable_fields(kind: type[SamplingParams]) -> dict[str, object]:
    """Every field with its type, but for the one whose type is not data."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__ if name != "json_schema"}


def _plain(value: object) -> object:
    """Numbers of other libraries (a numpy.float32 of a sweep) as Python's own."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _checked(name: str, value: object, hint: object) -> object:
    try:
        checked: object = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise _wrong(name, _explain(str(error), value)) from None
    if isinstance(checked, float) and not math.isfinite(checked):
        raise _wrong(name, f"{checked} is no number to compute with")
    return checked


def _explain(complaint: str, value: object) -> str:
    """msgspec's complaint about `value` in the words of Python."""
    what, _, where = complaint.replace("`", "").replace("null", "None").replace("array", "list").partition(" - at ")
    if where == "key in $":
        what = f"{what} for a key"
    elif where.startswith("$["):
        what = f"{what} for an element"
    problem = what[0].lower() + what[1:]
    return problem if " got " in problem else f"{problem}, not {value!r}"


def _schema_text(schema: object) -> str:
    """The schema as JSON, from a dict, from JSON itself, or from a class that has one."""
    if isinstance(schema, str):
        try:
            json.loads(schema)
        except ValueError as error:
            raise _wrong("json_schema", f"the string is not JSON: {error}") from None
        return schema
    if isinstance(schema, SchemaSource):
        schema = schema.model_json_schema()
    if not isinstance(schema, dict):
        raise _wrong("json_schema", f"expected a dict, JSON or a pydantic model, got {type(schema).__name__}")
    try:
        return _compact_json(schema)
    except (TypeError, ValueError) as error:
        raise _wrong("json_schema", f"it cannot be written as JSON: {error}") from None


def _compact_json(value: object) -> str:
    """As the HTTP API writes grammars: the same wish is the same grammar."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
