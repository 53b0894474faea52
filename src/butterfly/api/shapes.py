"""What the API answers, as types: they are what is encoded and what /openapi.json publishes.

The names and the nulls are OpenAI's; a field that is UNSET is left out.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers."""


# ------------------------------------------------------------------------------------------- errors


class ErrorDetail(Shape, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None = None  # the field of the request that is at fault
    code: str | None = None


class ErrorBody(Shape, frozen=True, kw_only=True):
    error: ErrorDetail


# -------------------------------------------------------------------------------------------- usage


class PromptTokensDetails(Shape, frozen=True, kw_only=True):
    cached_tokens: int  # found in the KV cache, so not computed again


class Usage(Shape, frozen=True, kw_only=True):
    prompt_tokens: int  # each prompt once, however many choices it has
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


# --------------------------------------------------------------------------------- chat completions

ChatReason = Literal["stop", "length", "tool_calls"]


class Alternative(Shape, frozen=True, kw_only=True):
    """One token that could stand at a position."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(Alternative, frozen=True, kw_only=True):
    """The token that does stand there, and the likeliest ones."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Shape, frozen=True, kw_only=True):
    content: list[ContentLogprob]
    refusal: None = None


class CalledFunction(Shape, frozen=True, kw_only=True):
    name: str
    arguments: str  # JSON, as the model wrote it


class ToolCall(Shape, frozen=True, kw_only=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Shape, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Shape, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatReason


class ChatCompletion(Shape, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int  # seconds since 1970
    model: str
    system_fingerprint: None = None
    choices: list[ChatChoice]
    usage: Usage


class CalledFunctionDelta(Shape, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallChunk(Shape, frozen=True, kw_only=True):
    """Part of a call: its id, type and name come with the first one, the arguments add up."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: CalledFunctionDelta


class ChatDelta(Shape, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallChunk] | UnsetType = UNSET


class ChatChunkChoice(Shape, frozen=True, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatReason | None = None


class ChatCompletionChunk(Shape, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


# -------------------------------------------------------------------------------------- completions


class CompletionLogprobs(Shape, frozen=True, kw_only=True):
    """Four lists of one length. The very first token of a prompt has no logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]  # characters of the choice's text before the token


class CompletionChoice(Shape, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None  # None: more chunks of this choice follow


class Completion(Shape, frozen=True, kw_only=True):
    """The whole answer, and each chunk of a stream too."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: None = None
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


# -------------------------------------------------------------------------------------------- other


class ModelCard(Shape, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "butterfly"
    max_model_len: int  # not OpenAI's, but clients of other servers look for it


class ModelList(Shape, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Shape, frozen=True, kw_only=True):
    status: Literal["ok"] = "ok"


class Readiness(Shape, frozen=True, kw_only=True):
    ready: bool
    phase: str
    detail: str


class Version(Shape, frozen=True, kw_only=True):
    version: str


class Drained(Shape, frozen=True, kw_only=True):
    """Agreed: the worker leaves as soon as others hold its layers; `/status` shows how far that is."""

    worker: str
