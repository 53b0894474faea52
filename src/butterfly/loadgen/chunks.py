"""The few fields of a server's answers that are measured; the rest is skipped while parsing."""

from __future__ import annotations

from typing import Any

import msgspec

_MAX_REASON_CHARACTERS = 200


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None  # of /v1/completions
    delta: Delta | None = None  # of /v1/chat/completions
    finish_reason: str | None = None

    @property
    def has_output(self) -> bool:
        """Whether a token came with it: no role by itself, no bare end.

        A completion without text but not at its end is a token that shows nothing (yet); in a chat it could be the
        role, which some servers send before anything is computed.
        """
        if self.text is not None:
            return bool(self.text) or self.finish_reason is None
        delta = self.delta
        return delta is not None and bool(delta.content or delta.reasoning_content or delta.reasoning)


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None  # an object or a text, as servers like it


CHUNKS = msgspec.json.Decoder(Chunk)


def error_text(body: bytes) -> str:
    """What an error answer says, in one line: {"error": {"message": ...}}, or whatever it is instead."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        content = body.decode(errors="replace")
    return describe(content)


def describe(content: Any) -> str:
    """The message inside an error object of any of the shapes in use."""
    while isinstance(content, dict):
        content = next((content[key] for key in ("error", "message", "detail") if content.get(key)), str(content))
    return " ".join(str(content).split())[:_MAX_REASON_CHARACTERS]
