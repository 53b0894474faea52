"""How the answers of /v1/chat/completions are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import UNSET

from butterfly.api import shapes
from butterfly.api.building import Job
from butterfly.api.choices import ChoiceEvent, ShownToken
from butterfly.api.formats import ChunkUsage, Head
from butterfly.api.interfaces import Tokenizer
from butterfly.api.shapes import ChatReason, Usage
from butterfly.api.token_texts import chat_logprobs
from butterfly.api.tool_bodies import ToolUse
from butterfly.api.tool_calls import ToolCallDelta, whole_calls


class ChatFormat:
    def __init__(self, head: Head, job: Job, tokenizer: Tokenizer) -> None:
        self._head = head
        self._choices = [
            _ChatChoice(index, job.tool_use, tokenizer, has_logprobs=job.has_logprobs)
            for index in range(len(job.requests))
        ]

    def whole(self, events: Sequence[Sequence[ChoiceEvent]], usage: Usage) -> shapes.ChatCompletion:
        choices = [choice.whole(own) for choice, own in zip(self._choices, events, strict=True)]
        head = self._head
        return shapes.ChatCompletion(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)

    def chunks(self, event: ChoiceEvent, usage: ChunkUsage) -> Iterator[shapes.ChatCompletionChunk]:
        for choice in self._choices[event.index].chunks(event):
            yield self._chunk([choice], usage)

    def usage_chunk(self, usage: Usage) -> shapes.ChatCompletionChunk:
        return self._chunk([], usage)

    def _chunk(self, choices: list[shapes.ChatChunkChoice], usage: ChunkUsage) -> shapes.ChatCompletionChunk:
        head = self._head
        return shapes.ChatCompletionChunk(
            id=head.id, created=head.created, model=head.model, choices=choices, usage=usage
        )


class _ChatChoice:
    """One choice of a chat: content, calls of tools, logprobs of both.

    The token that ended the text has no place among the logprobs: their texts add up to what the model said.
    """

    def __init__(self, index: int, tool_use: ToolUse | None, tokenizer: Tokenizer, *, has_logprobs: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._tool_use = tool_use
        self._has_logprobs = has_logprobs
        self._parser = tool_use.parser() if tool_use else None
        self._is_open = False
        self._tokens: list[ShownToken] = []  # their logprobs go out with the next chunk

    def whole(self, events: Sequence[ChoiceEvent]) -> shapes.ChatChoice:
        parts = [self._split(event) for event in events]
        text = "".join(content for content, _ in parts)
        calls = msgspec.convert(whole_calls(call for _, calls in parts for call in calls), list[shapes.ToolCall])
        message = shapes.AssistantMessage(
            content=None if calls and not text.strip() else text, tool_calls=calls or UNSET
        )
        tokens = [token for event in events for token in event.tokens if not token.is_silent]
        return shapes.ChatChoice(
            index=self._index,
            message=message,
            logprobs=chat_logprobs(self._tokenizer, tokens) if self._has_logprobs else None,
            finish_reason=self._reason(events[-1]) or "length",
        )

    def chunks(self, event: ChoiceEvent) -> Iterator[shapes.ChatChunkChoice]:
        if not self._is_open:
            # Sent with the first token, not before, so that a client's time to first chunk is honest.
            self._is_open = True
            yield shapes.ChatChunkChoice(index=self._index, delta=shapes.ChatDelta(role="assistant", content=""))
        self._tokens.extend(token for token in event.tokens if not token.is_silent)
        content, calls = self._split(event)
        if content:
            yield self._chunk(shapes.ChatDelta(content=content))
        for call in calls:
            yield self._chunk(shapes.ChatDelta(tool_calls=[_call_chunk(call)]))
        if event.finish_reason is not None:
            yield self._chunk(shapes.ChatDelta(), self._reason(event))

    def _chunk(self, delta: shapes.ChatDelta, reason: ChatReason | None = None) -> shapes.ChatChunkChoice:
        logprobs = chat_logprobs(self._tokenizer, self._tokens) if self._tokens else None
        self._tokens.clear()
        return shapes.ChatChunkChoice(index=self._index, delta=delta, logprobs=logprobs, finish_reason=reason)

    def _split(self, event: ChoiceEvent) -> tuple[str, list[ToolCallDelta]]:
        """Return the content and the calls that became certain with `event`."""
        if self._parser is None or self._tool_use is None:
            return event.text, []
        content, calls = self._parser.push(event.text)
        if event.finish_reason is not None:
            last_content, last_calls = self._parser.flush()
            content += last_content
            calls = [*calls, *last_calls]
        if not self._tool_use.is_parallel:
            calls = [call for call in calls if call.index == 0]
        return content, calls

    def _reason(self, event: ChoiceEvent) -> ChatReason | None:
        """As OpenAI does: a call that the client named itself ends with an ordinary stop."""
        if self._parser is None or self._tool_use is None or self._tool_use.is_named:
            return event.finish_reason
        return "tool_calls" if self._parser.has_calls and event.finish_reason == "stop" else event.finish_reason


def _call_chunk(call: ToolCallDelta) -> shapes.ToolCallChunk:
    function = shapes.CalledFunctionDelta(name=call.name or UNSET, arguments=call.arguments)
    is_first = call.id is not None
    return shapes.ToolCallChunk(
        index=call.index, id=call.id or UNSET, type="function" if is_first else UNSET, function=function
    )
