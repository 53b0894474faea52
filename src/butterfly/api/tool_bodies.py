"""Which tools a chat may call, and how: the fields `tools`, `tool_choice` and `parallel_tool_calls`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, ModelWrapValidatorHandler, PrivateAttr, model_validator

from butterfly.api.checked import Checked
from butterfly.api.tool_calls import ToolCallParser, ToolFormat, ToolFunction, tool_format_of, tool_grammar
from butterfly.errors import InvalidRequestError
from butterfly.specs import GrammarSpec

MAX_TOOLS = 128

_FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionBody(Checked):
    name: _FunctionName
    description: str | None = None
    parameters: Annotated[dict[str, JsonValue] | None, Field(description="A JSON schema of an object.")] = None


class Tool(Checked):
    type: Literal["function"]
    function: FunctionBody
    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_sent(cls, value: Any, handler: ModelWrapValidatorHandler[Tool]) -> Tool:
        """A template writes a tool as it was sent, in the order of its keys: models were trained on that."""
        tool = handler(value)
        tool._sent = value
        return tool

    def for_template(self) -> dict[str, Any]:
        return self._sent

    def for_grammar(self) -> ToolFunction:
        parameters = self.function.parameters
        return ToolFunction(
            self.function.name, self.function.description, None if parameters is None else dict(parameters)
        )


class NamedFunction(Checked):
    name: str


class NamedToolChoice(Checked):
    type: Literal["function"]
    function: NamedFunction


_Mode = Literal["none", "auto", "required"]


class ToolChoice(Checked):
    """`tool_choice` in one form: a mode is {"type": mode}."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None


def _tool_choice_of(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


ToolChoiceField = Annotated[
    ToolChoice | None, BeforeValidator(_tool_choice_of, json_schema_input_type=_Mode | NamedToolChoice | None)
]


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Raises InvalidRequestError for two tools of one name, or a choice of what is not there."""
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            param = f"tools[{index}].function.name"
            raise InvalidRequestError(f"{param}: an earlier tool has the name '{name}' too", param)
    if choice is None or choice.type in ("none", "auto"):
        return
    if not tools:
        raise InvalidRequestError(f"tool_choice '{choice.type}' is only allowed with tools", "tool_choice")
    if choice.type == "function" and choice.function is None:
        raise InvalidRequestError("tool_choice.function is missing", "tool_choice.function")
    if choice.function is not None and choice.function.name not in names:
        raise InvalidRequestError("tool_choice: there is no such tool among tools", "tool_choice")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How the answers of one call may use tools."""

    format: ToolFormat
    names: frozenset[str]
    for_template: list[dict[str, Any]]
    grammar: GrammarSpec | None  # None: the model decides whether it calls one
    is_named: bool  # the client has named the one that must be called
    is_parallel: bool  # an answer may have several calls

    def parser(self) -> ToolCallParser:
        return ToolCallParser(self.format, self.names)


def tool_use_of(
    tools: Sequence[Tool], choice: ToolChoice | None, template_source: str, *, parallel: bool | None
) -> ToolUse | None:
    """Return how `tools` are used, None when they are not: then the model does not hear of them."""
    mode = "auto" if choice is None else choice.type
    if not tools or mode == "none":
        return None
    format = tool_format_of(template_source)
    functions = [tool.for_grammar() for tool in tools]
    only = choice.function.name if mode == "function" and choice and choice.function else None
    is_parallel = parallel is not False
    return ToolUse(
        format=format,
        names=frozenset(function.name for function in functions),
        for_template=[tool.for_template() for tool in tools],
        grammar=None if mode == "auto" else tool_grammar(functions, format, only=only, parallel=is_parallel),
        is_named=only is not None,
        is_parallel=is_parallel,
    )
