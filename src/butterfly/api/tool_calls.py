"""Tools: what a model may say when it must call one, and the calls in what it said.

Two formats cover the models we run. `hermes` wraps each call in tags, `<tool_call>{"name": ..., "arguments":
{...}}</tool_call>`, and may say something before and between. `json` is a bare object, `{"name": ...,
"parameters": {...}}`, and then the answer is nothing but calls.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from butterfly.errors import InvalidRequestError
from butterfly.specs import GrammarSpec

ToolFormat = Literal["hermes", "json"]

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"  # Llama 3 may set it before its calls
_BLANK = re.compile(r"\s*")
_SEPARATORS = re.compile(r"[\s;]*")


@dataclass(frozen=True, slots=True)
class ToolFunction:
    """A function that the model may call. `parameters` is a JSON schema; None: it takes none."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of call number `index`: id and name come with the first part, arguments (JSON) add up."""

    index: int
    id: str | None
    name: str | None
    arguments: str


def tool_format_of(template_source: str) -> ToolFormat:
    """Return the format that a chat template teaches the model it comes with."""
    return "hermes" if _OPEN in template_source else "json"


# ------------------------------------------------------------------------------------------ grammar

# How json.dumps writes: what templates show a model, and no room for endless white space. Schemas of tools are
# written for people, too: keywords that cannot be enforced are let through instead of refused.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
_NO_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_grammar(tools: Sequence[ToolFunction], format: ToolFormat, *, only: str | None, parallel: bool) -> GrammarSpec:
    """Return the grammar of an answer that calls one of `tools`: any of them, or the one named `only`.

    `parallel` allows several calls in a row; a function that is named is called once. The grammar gives every
    schema a root of its own, so that `$ref` works in it. Raises InvalidRequestError without tools, for a name
    that is none of theirs, and for parameters that are no object.
    """
    if not tools:
        raise InvalidRequestError("tool_choice: there are no tools to choose from; send them in tools", "tool_choice")
    allowed = [(index, tool) for index, tool in enumerate(tools) if only is None or tool.name == only]
    if not allowed:
        names = ", ".join(tool.name for tool in tools)
        raise InvalidRequestError(f"tool_choice: '{only}' is none of the tools; they are {names}", "tool_choice")
    before, after, separator, key = {
        "hermes": (f"{_OPEN}\n", f"\n{_CLOSE}", "\n", "arguments"),
        "json": ("", "", "; ", "parameters"),
    }[format]
    repeated = f" ({_literal(separator)} call)*" if parallel and only is None else ""
    lines = [f"start: call{repeated}", "call: " + " | ".join(f"call_{index}" for index, _ in allowed)]
    for index, tool in allowed:
        opening = f'{before}{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{key}": '
        lines.append(f"call_{index}: {_literal(opening)} arguments_{index} {_literal('}' + after)}")
        schema = json.dumps({**_parameters_of(tool, index), "x-guidance": _JSON_STYLE})
        lines.append(f"arguments_{index}: %json {schema}")
    return GrammarSpec(kind="lark", text="\n".join(lines) + "\n", param="tool_choice")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # the grammar's strings are JSON's


def _parameters_of(tool: ToolFunction, index: int) -> dict[str, object]:
    if not tool.parameters:
        return _NO_PARAMETERS
    kind = tool.parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        name = f"tools[{index}].function.parameters"
        raise InvalidRequestError(f"{name}: a schema of parameters has the type 'object', not {kind!r}", name)
    return {**tool.parameters, "type": "object"}


# ------------------------------------------------------------------------------------------ parsing


class ToolCallParser:
    """Splits an answer into content and calls while it is generated.

    Whatever is no call of a known function, or never becomes one, comes back as content: nothing is lost, and
    the result does not depend on how the text is cut. For the same reason a call goes out as one delta, when
    it is whole: arguments that have been sent could not become content any more. White space around calls
    goes with them.
    """

    def __init__(self, format: ToolFormat, names: Collection[str]) -> None:
        self._reader: _Reader = _HermesReader(names) if format == "hermes" else _JsonReader(names)
        self._held = ""  # what may still become a call
        self._num_calls = 0

    @property
    def has_calls(self) -> bool:
        return self._num_calls > 0

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Return the content and the calls that became certain."""
        self._held += text
        return self._read(is_last=False)

    def flush(self) -> tuple[str, list[ToolCallDelta]]:
        """Return what is left at the end of the answer."""
        return self._read(is_last=True)

    def _read(self, *, is_last: bool) -> tuple[str, list[ToolCallDelta]]:
        content: list[str] = []
        deltas: list[ToolCallDelta] = []
        while self._held and (part := self._reader.next_part(self._held, is_last=is_last)):
            if part.is_content:
                content.append(self._held[: part.num_characters])
            for name, arguments in part.calls:
                deltas.append(ToolCallDelta(self._num_calls, f"call_{secrets.token_hex(12)}", name, arguments))
                self._num_calls += 1
            self._held = self._held[part.num_characters :]
        return "".join(content), deltas


def whole_calls(deltas: Iterable[ToolCallDelta]) -> list[dict[str, object]]:
    """Return the calls as OpenAI's `message.tool_calls`."""
    calls: dict[int, tuple[str | None, str | None, str]] = {}
    for delta in deltas:
        id, name, arguments = calls.get(delta.index, (delta.id, delta.name, ""))
        calls[delta.index] = (id, name, arguments + delta.arguments)
    return [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for _, (id, name, arguments) in sorted(calls.items())
    ]


_NameAndArguments = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Part:
    """What the first `num_characters` of the held text are: content, calls, or (neither) nothing."""

    num_characters: int
    is_content: bool = False
    calls: tuple[_NameAndArguments, ...] = ()


class _Reader(Protocol):
    def next_part(self, text: str, *, is_last: bool) -> _Part | None:
        """Return what `text` begins with, or None (never when `is_last`) until more of it is known.

        The text of the next call begins with the same characters after None, and behind the part otherwise.
        """


class _HermesReader:
    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._scan = _JsonScan()
        self._num_calls = 0
        self._is_beside_call = True  # or at the start: white space here belongs to the call that may follow

    def next_part(self, text: str, *, is_last: bool) -> _Part | None:
        start = _end_of(_BLANK, text) if self._is_beside_call else 0
        rest = len(text) - start
        if not is_last and rest < len(_OPEN) and _OPEN.startswith(text[start:]):
            return None
        if not rest:
            return _Part(start, is_content=not self._num_calls)
        if text.startswith(_OPEN, start):
            return self._call(text, start + len(_OPEN), is_last=is_last)
        self._is_beside_call = False
        found = text.find(_OPEN)
        if found < 0:
            found = len(text) - (0 if is_last else _num_open(text, _OPEN))
        return _Part(found, is_content=True) if found else None

    def _call(self, text: str, start: int, *, is_last: bool) -> _Part | None:
        """The call whose opening tag ends at `start`; a tag that opens none is content."""
        begin = _end_of(_BLANK, text, start)
        end = self._scan.end_of(text, begin) if text.startswith("{", begin) else None
        calls = _calls_in(text[begin:end], self._names) if end else ()
        close = _end_of(_BLANK, text, end) if end else begin
        is_closed = text.startswith(_CLOSE, close)
        if not is_last and not is_closed and not self._scan.is_broken:
            # Still possible: nothing after the tag, an object that goes on, a call and the start of its end.
            is_open = begin == len(text) or (text[begin] == "{" and not end)
            if is_open or (calls and _CLOSE.startswith(text[close:])):
                return None
        self._scan = _JsonScan()
        if calls and (is_closed or _CLOSE.startswith(text[close:])):
            self._is_beside_call = True
            self._num_calls += 1
            return _Part(close + len(_CLOSE) if is_closed else len(text), calls=calls)
        self._is_beside_call = False
        return _Part(start, is_content=True)


class _JsonReader:
    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._scan = _JsonScan()
        self._has_calls = False
        self._is_prose = False  # from the first character that is no call

    def next_part(self, text: str, *, is_last: bool) -> _Part | None:
        if self._is_prose:
            return _Part(len(text), is_content=True)
        begin = _end_of(_SEPARATORS, text) if self._has_calls else _end_of(_BLANK, text)
        if not self._has_calls:
            if not is_last and len(text) - begin < len(_PYTHON_TAG) and _PYTHON_TAG.startswith(text[begin:]):
                return None
            if text.startswith(_PYTHON_TAG, begin):
                begin = _end_of(_BLANK, text, begin + len(_PYTHON_TAG))
        if begin == len(text):
            return _Part(begin, is_content=not self._has_calls) if is_last else None
        end = self._scan.end_of(text, begin) if text[begin] in "{[" else None
        if end and (calls := _calls_in(text[begin:end], self._names)):
            self._scan = _JsonScan()
            self._has_calls = True
            return _Part(end, calls=calls)
        if not is_last and not end and text[begin] in "{[" and not self._scan.is_broken:
            return None
        self._is_prose = True
        return _Part(len(text), is_content=True)


class _JsonScan:
    """Follows one JSON object or list, over texts that only grow, to the end of it.

    It only keeps strings and brackets apart, but stops at whatever can stand in no JSON, so that prose with a
    bracket in it is not held back for long.
    """

    _STRING = re.compile(r'(?:[^"\\\x00-\x1f]|\\.)*')
    _BETWEEN = re.compile(r"[\s,:+\-.0-9Eaeflnrstu]*")  # separators, numbers, true, false, null

    def __init__(self) -> None:
        self.is_broken = False
        self._position: int | None = None  # what is before it has been read
        self._end: int | None = None
        self._is_in_string = False
        self._closers: list[str] = []

    def end_of(self, text: str, start: int) -> int | None:
        """Return the end of the value that begins at `start`; None: not there yet, or broken."""
        if self._position is None:
            self._position = start
        while self._end is None and not self.is_broken:
            run = self._STRING if self._is_in_string else self._BETWEEN
            self._position = _end_of(run, text, self._position)
            if self._position == len(text) or (self._position == len(text) - 1 and text[-1] == "\\"):
                break
            self._take(text[self._position])
            self._position += 1
            if not self._closers and not self.is_broken:
                self._end = self._position
        return self._end

    def _take(self, character: str) -> None:
        if character == '"':
            self._is_in_string = not self._is_in_string
        elif self._is_in_string:
            self.is_broken = True  # a control character or a backslash before one
        elif character in "{[":
            self._closers.append("}" if character == "{" else "]")
        elif not self._closers or character != self._closers.pop():
            self.is_broken = True


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


def _calls_in(text: str, names: Collection[str]) -> tuple[_NameAndArguments, ...]:
    """Return the calls that `text`, an object or a list of them, is; none unless all of it is."""
    try:
        is_list = text.startswith("[")
        calls = msgspec.json.decode(text, type=list[_Call]) if is_list else [msgspec.json.decode(text, type=_Call)]
        if any(call.name not in names for call in calls):
            return ()
        return tuple((call.name, _arguments_of(call)) for call in calls)
    except (msgspec.DecodeError, RecursionError):
        return ()


def _arguments_of(call: _Call) -> str:
    """Return the arguments as the model wrote them. Raises msgspec.DecodeError unless they are an object."""
    raw = bytes(call.arguments) or bytes(call.parameters)
    if raw in (b"", b"null"):
        return "{}"
    if raw.startswith(b'"'):  # some models write the object into a string, as OpenAI's API does
        raw = msgspec.json.decode(raw, type=str).encode()
    msgspec.json.decode(raw, type=dict)
    return raw.decode()


def _end_of(pattern: re.Pattern[str], text: str, start: int = 0) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


def _num_open(text: str, marker: str) -> int:
    """Return the length of the longest end of `text` that begins `marker`."""
    sizes = range(min(len(text), len(marker) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)
