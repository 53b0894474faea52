"""Chat messages to prompt text with the Jinja template that comes with a model.

The environment is the one that published templates are written for (the conventions of
transformers' `apply_chat_template`), in Jinja's immutable sandbox: a template is data from a file.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from butterfly.errors import InvalidRequestError, ModelFormatError

_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What evaluating a template over unfit messages can raise: it is Python underneath."""


class ChatTemplate:
    """A compiled template. Raises ModelFormatError when `source` is not valid Jinja."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelFormatError(f"the chat template is not valid: {error}") from error

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """Return the prompt for `messages`; `extra` become template variables (`tools`, ...).

        The special tokens are written out in it: encode it with `add_special_tokens=False`. Raises
        InvalidRequestError when the template refuses the messages.
        """
        variables = {"tools": None, "documents": None, **self._tokens, **extra}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
        except _TEMPLATE_FAILURES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InvalidRequestError(
                f"the model's chat template refuses the messages: {reason}", "messages"
            ) from error


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's part for training; here, just its body."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)


def _tojson(value: Any, **options: Any) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which models were not trained on."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def pick_template(stated: object) -> str | None:
    """Return the template in a `chat_template` field: a string, or a list of named ones ("default" wins)."""
    if isinstance(stated, str):
        return stated
    if not isinstance(stated, list):
        return None
    named = {
        item["name"]: item["template"]
        for item in stated
        if isinstance(item, Mapping) and isinstance(item.get("template"), str) and "name" in item
    }
    return named.get("default") or next(iter(named.values()), None)
