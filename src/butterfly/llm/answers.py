"""Answers on their way: the pieces of one, those of several side by side, and pieces put together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from butterfly.api import Choice, EngineClient
from butterfly.errors import RequestFailedError
from butterfly.llm.requests import Job
from butterfly.llm.results import Completion, EndReason, Generation, Piece, Position, positions
from butterfly.models import Tokenizer
from butterfly.specs import RequestOutput, TokenLogprobs

T = TypeVar("T")


class Answer:
    """One answer of a job: its pieces as they come, and what is known of it so far."""

    def __init__(self, job: Job, index: int, tokenizer: Tokenizer) -> None:
        params, request = job.params, job.requests[index]
        self._index = index
        self._request = request
        self._tokenizer = tokenizer
        self._choice = Choice(
            index,
            request,
            tokenizer.stream(params.skip_special_tokens),
            params.stops,
            keeps_stop=params.include_stop_str_in_output,
            silent_token_ids=() if params.include_stop_str_in_output else request.stop_token_ids,
        )
        self._draft = _Draft()

    async def pieces(self, client: EngineClient) -> AsyncGenerator[Piece, None]:
        """Submit the request and yield what it gives; leaving early aborts it.

        Raises RequestError: InvalidRequestError and OverloadedError before the first piece, later ones when the
        answer fails.
        """
        outputs = await client.submit(self._request)
        has_ended = False
        try:
            async for output in outputs:
                has_ended = output.finish_reason is not None
                piece = self._advance(output)
                yield piece
                if piece.finish_reason is not None:
                    return
            raise RequestFailedError("the engine ended the request without a reason", self._request.request_id)
        finally:
            if not has_ended:
                client.abort(self._request.request_id)
            if isinstance(outputs, AsyncGenerator):
                await outputs.aclose()

    def completion(self) -> Completion:
        """The whole answer, after its last piece."""
        draft = self._draft
        assert draft.finish_reason is not None
        return Completion(
            index=self._index,
            text="".join(draft.texts),
            token_ids=draft.token_ids,
            finish_reason=draft.finish_reason,
            logprobs=draft.logprobs if self._wants_logprobs else None,
            cumulative_logprob=math.fsum(draft.sampled_logprobs) if self._wants_logprobs else None,
        )

    @property
    def num_cached_tokens(self) -> int:
        return self._draft.num_cached_tokens

    def prompt_logprobs(self) -> list[Position | None] | None:
        """One for each prompt token; the first has nothing before it that could make it likely."""
        if self._request.num_prompt_logprobs is None:
            return None
        return [None, *positions(self._draft.prompt_logprobs, self._tokenizer)]

    @property
    def _wants_logprobs(self) -> bool:
        return self._request.sampling.num_logprobs is not None

    def _advance(self, output: RequestOutput) -> Piece:
        draft = self._draft
        event = self._choice.advance(output)
        num_new = event.num_tokens - len(draft.token_ids)  # tokens behind a stop string do not count
        logprobs = output.logprobs[:num_new]
        piece = Piece(
            index=event.index,
            text=event.text,
            token_ids=list(output.token_ids[:num_new]),
            logprobs=positions(logprobs, self._tokenizer) if self._wants_logprobs else None,
            finish_reason=event.finish_reason,
        )
        draft.add(piece, logprobs, output)
        return piece


@dataclass(slots=True)
class _Draft:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Position] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    num_cached_tokens: int = 0
    finish_reason: EndReason | None = None

    def add(self, piece: Piece, logprobs: Sequence[TokenLogprobs], output: RequestOutput) -> None:
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs or []
        self.sampled_logprobs += [entry.logprob for entry in logprobs]
        self.prompt_logprobs += output.prompt_logprobs
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        self.finish_reason = piece.finish_reason


def generation(job: Job, answers: Sequence[Answer]) -> Generation:
    """Put the ended answers of a job together."""
    return Generation(
        prompt=job.prompt.text,
        prompt_token_ids=list(job.prompt.token_ids),
        outputs=[answer.completion() for answer in answers],
        prompt_logprobs=answers[0].prompt_logprobs(),
        num_cached_tokens=answers[0].num_cached_tokens,
    )


async def side_by_side(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Yield from all streams as they come. The first error ends all; so does leaving early."""
    arrived: asyncio.Queue[T | asyncio.Task[None]] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[T, None]) -> None:
        try:
            async for item in stream:
                arrived.put_nowait(item)
        finally:
            await stream.aclose()

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    for task in pumps:
        task.add_done_callback(arrived.put_nowait)
    num_running = len(pumps)
    try:
        while num_running:
            item = await arrived.get()
            if not isinstance(item, asyncio.Task):
                yield item
                continue
            num_running -= 1
            item.result()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
