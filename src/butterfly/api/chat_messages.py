"""The messages of a chat, checked, and as chat templates take them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from butterfly.api.checked import Checked, wrong
from butterfly.api.problems import UnsupportedFieldError
from butterfly.errors import InvalidRequestError

# What the server sets itself, and "self", which no call can be given by name.
_RESERVED_VARIABLES = ("self", "messages", "add_generation_prompt", "tools", "documents")


class TextPart(Checked):
    type: Literal["text"]
    text: str


def _text_of(content: object) -> object:
    """Join the text parts of a message by newlines, as templates take one string."""
    if not isinstance(content, list):
        return content
    return "\n".join(_text_of_part(part) for part in content)


def _text_of_part(part: object) -> str:
    if isinstance(part, dict) and part.get("type") != "text" and isinstance(part.get("type"), str):
        raise wrong("only parts of type 'text' are supported")
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise wrong("a part must be an object with type 'text' and a text")
    text: str = part["text"]
    return text


class PastFunction(Checked):
    name: str
    arguments: str  # JSON


class PastToolCall(Checked):
    """A call that the model made in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: PastFunction

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": _object_or_text(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


def _object_or_text(arguments: str) -> dict[str, Any] | str:
    """Templates want an object, and write it in their own way; what is none stays what the model wrote."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return arguments


# What `check_messages` asks for, as /openapi.json says it: what a message must have depends on its role.
_WITH_CONTENT: JsonDict = {"properties": {"content": {"type": ["string", "array"]}, "tool_calls": {"maxItems": 0}}}
_OF_ASSISTANT: JsonDict = {"properties": {"role": {"const": "assistant"}}}
_OF_TOOL: JsonDict = {
    "properties": {"role": {"const": "tool"}, "tool_call_id": {"type": "string"}},
    "required": ["tool_call_id"],
}
_OF_OTHERS: JsonDict = {"properties": {"role": {"enum": ["system", "developer", "user"]}}}
_BY_ROLE: JsonDict = {
    "anyOf": [
        _OF_ASSISTANT,
        {"required": ["content"], "allOf": [_WITH_CONTENT], "anyOf": [_OF_TOOL, _OF_OTHERS]},
    ]
}


class ChatMessage(Checked):
    """One message. `developer` is OpenAI's newer name of `system`; templates know only the latter."""

    model_config = ConfigDict(json_schema_extra=_BY_ROLE)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_text_of, json_schema_input_type=str | list[TextPart] | None)] = None
    name: str | None = None
    tool_calls: list[PastToolCall] | None = None
    tool_call_id: Annotated[str | None, Field(description="Required with role tool: the call this answers.")] = None

    def for_template(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def check_messages(messages: list[ChatMessage]) -> None:
    """Raises InvalidRequestError for what a type cannot say: which role needs which field."""
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if (message.model_extra or {}).get("function_call"):
            raise UnsupportedFieldError(
                f"{name}.function_call is not supported; use tool_calls", f"{name}.function_call"
            )
        if message.content is None and message.role != "assistant":  # a model may have said nothing
            raise InvalidRequestError(f"{name}.content is missing", f"{name}.content")
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequestError(f"{name}.tool_calls: only an assistant calls tools", f"{name}.tool_calls")
        if message.role == "tool" and message.tool_call_id is None:
            raise InvalidRequestError(f"{name}.tool_call_id is missing", f"{name}.tool_call_id")


def check_template_variables(names: Collection[str]) -> None:
    """Raises InvalidRequestError for a variable in `chat_template_kwargs` that is not the client's to set."""
    for name in _RESERVED_VARIABLES:
        if name in names:
            raise InvalidRequestError(
                f"chat_template_kwargs: '{name}' is set by the server; leave it out", "chat_template_kwargs"
            )
