"""The shapes of OpenAI's answers: one class per endpoint, the same methods."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from butterfly.api.choices import ClientReason

Json = dict[str, Any]


def usage_of(num_prompt_tokens: int, num_output_tokens: int) -> Json:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }


class Format(Protocol):
    """How the choices of one call are written."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    id_prefix: ClassVar[str]

    def opening(self, index: int) -> Json | None:
        """Return the choice of the chunk before the first text of choice `index`, or None."""

    def delta(self, index: int, text: str) -> Json: ...

    def closing(self, index: int, reason: ClientReason) -> Json: ...

    def whole(self, index: int, text: str, reason: ClientReason) -> Json: ...


class ChatFormat:
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    id_prefix: ClassVar[str] = "chatcmpl-"

    def opening(self, index: int) -> Json | None:
        return _chat_chunk(index, {"role": "assistant", "content": ""}, None)

    def delta(self, index: int, text: str) -> Json:
        return _chat_chunk(index, {"content": text}, None)

    def closing(self, index: int, reason: ClientReason) -> Json:
        return _chat_chunk(index, {}, reason)

    def whole(self, index: int, text: str, reason: ClientReason) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


class CompletionFormat:
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"
    id_prefix: ClassVar[str] = "cmpl-"

    def opening(self, index: int) -> Json | None:
        return None

    def delta(self, index: int, text: str) -> Json:
        return _completion_choice(index, text, None)

    def closing(self, index: int, reason: ClientReason) -> Json:
        return _completion_choice(index, "", reason)

    def whole(self, index: int, text: str, reason: ClientReason) -> Json:
        return _completion_choice(index, text, reason)


def _chat_chunk(index: int, delta: Json, reason: ClientReason | None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _completion_choice(index: int, text: str, reason: ClientReason | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
