"""Many prompts at once: as many requests in flight as keep the cluster busy, results in the order of the prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from butterfly.api import EngineClient
from butterfly.errors import ButterflyError, InvalidRequestError, OverloadedError
from butterfly.llm.answers import Answer, generation
from butterfly.llm.requests import Job
from butterfly.llm.results import BatchError, Generation
from butterfly.models import Tokenizer


@dataclass(slots=True)
class _Progress:
    """One job of the batch, with what it has so far."""

    job: Job
    answers: list[Answer] = field(default_factory=list)
    error: ButterflyError | None = None


class Batch:
    """Runs the jobs, once.

    `num_in_flight` requests are with the engine at once: its queue is bounded, a batch is not. `on_answer` hears of
    every answer that ended, with its number of tokens, on the loop.
    """

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        jobs: Sequence[Job],
        num_in_flight: int,
        on_answer: Callable[[int], None],
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._jobs = [_Progress(job) for job in jobs]
        self._num_in_flight = num_in_flight
        self._on_answer = on_answer

    async def run(self) -> list[Generation]:
        """Return a generation for every job, in order.

        A request that is refused for what it asks (InvalidRequestError) ends the batch at once. One that fails while
        it runs leaves the others alone: their results are in the BatchError that is raised at the end, or that error
        itself is raised when there is only one prompt.
        """
        answers = self._all_answers()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._num_in_flight):
                    group.create_task(self._work(answers))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        failed = {index: progress.error for index, progress in enumerate(self._jobs) if progress.error is not None}
        if len(failed) == len(self._jobs) == 1:
            raise failed[0]
        if failed:
            raise BatchError(
                failed, [None if each.error else generation(each.job, each.answers) for each in self._jobs]
            )
        return [generation(progress.job, progress.answers) for progress in self._jobs]

    def _all_answers(self) -> Iterator[tuple[_Progress, Answer]]:
        """Every answer of every job, those of one prompt side by side, the most urgent prompts first."""
        for progress in sorted(self._jobs, key=lambda progress: progress.job.params.priority):
            for index in range(len(progress.job.requests)):
                answer = Answer(progress.job, index, self._tokenizer)
                progress.answers.append(answer)
                yield progress, answer

    async def _work(self, answers: Iterator[tuple[_Progress, Answer]]) -> None:
        for progress, answer in answers:
            if progress.error is not None:
                continue  # nobody gets the other answers of a prompt that failed
            try:
                await self._finish(answer)
            except InvalidRequestError:
                raise
            except ButterflyError as error:
                progress.error = error

    async def _finish(self, answer: Answer) -> None:
        num_tokens = 0
        while True:
            try:
                async for piece in answer.pieces(self._client):
                    num_tokens += len(piece.token_ids)
            except OverloadedError as error:  # by others: an idle engine refuses nobody
                await asyncio.sleep(error.retry_after_s)
                continue
            self._on_answer(num_tokens)
            return
