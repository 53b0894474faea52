"""How the answers of /v1/completions are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from butterfly.api import shapes
from butterfly.api.building import Job
from butterfly.api.choices import ChoiceEvent, ClientReason, ShownToken
from butterfly.api.formats import ChunkUsage, Head
from butterfly.api.interfaces import Tokenizer
from butterfly.api.shapes import Usage
from butterfly.api.token_texts import Echo, completion_logprobs, echo_logprobs, join_logprobs


class CompletionFormat:
    def __init__(self, head: Head, job: Job, tokenizer: Tokenizer) -> None:
        self._head = head
        self._choices = [
            _CompletionChoice(index, job.echo(index), tokenizer, has_logprobs=job.has_logprobs)
            for index in range(len(job.requests))
        ]

    def whole(self, events: Sequence[Sequence[ChoiceEvent]], usage: Usage) -> shapes.Completion:
        choices = [choice.whole(own) for choice, own in zip(self._choices, events, strict=True)]
        return self._completion(choices, usage)

    def chunks(self, event: ChoiceEvent, usage: ChunkUsage) -> Iterator[shapes.Completion]:
        for choice in self._choices[event.index].chunks(event):
            yield self._completion([choice], usage)

    def usage_chunk(self, usage: Usage) -> shapes.Completion:
        return self._completion([], usage)

    def _completion(self, choices: list[shapes.CompletionChoice], usage: ChunkUsage) -> shapes.Completion:
        head = self._head
        return shapes.Completion(id=head.id, created=head.created, model=head.model, choices=choices, usage=usage)


class _CompletionChoice:
    """One choice of a completion: the prompt first, when it is echoed."""

    def __init__(self, index: int, echo: Echo | None, tokenizer: Tokenizer, *, has_logprobs: bool) -> None:
        self._index = index
        self._echo = echo
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs
        self._is_open = False

    def whole(self, events: Sequence[ChoiceEvent]) -> shapes.CompletionChoice:
        parts = [part for event in events for part in self.chunks(event)]
        logprobs = [part.logprobs for part in parts if part.logprobs is not None]
        return shapes.CompletionChoice(
            index=self._index,
            text="".join(part.text for part in parts),
            logprobs=join_logprobs(logprobs) if self._has_logprobs else None,
            finish_reason=parts[-1].finish_reason,
        )

    def chunks(self, event: ChoiceEvent) -> Iterator[shapes.CompletionChoice]:
        if not self._is_open:
            self._is_open = True
            if self._echo is not None:
                yield self._echoed(self._echo, event)
        if event.text:
            yield self._chunk(event.text, event.tokens, None)
        if event.finish_reason is not None:
            yield self._chunk("", () if event.text else event.tokens, event.finish_reason)

    def _chunk(self, text: str, tokens: Sequence[ShownToken], reason: ClientReason | None) -> shapes.CompletionChoice:
        start = len(self._echo.text) if self._echo is not None else 0
        logprobs = completion_logprobs(self._tokenizer, tokens, start) if tokens else None
        return shapes.CompletionChoice(index=self._index, text=text, logprobs=logprobs, finish_reason=reason)

    def _echoed(self, echo: Echo, event: ChoiceEvent) -> shapes.CompletionChoice:
        logprobs = echo_logprobs(self._tokenizer, echo, event.prompt_logprobs) if self._has_logprobs else None
        return shapes.CompletionChoice(index=self._index, text=echo.text, logprobs=logprobs, finish_reason=None)
