"""Greedy streams side by side through the real client, watched while they run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import httpx
import openai

from tests.support.product import MODEL, PATIENCE_S, Server, eventually

StreamError = (openai.OpenAIError, httpx.HTTPError)
"""What a broken stream raises: the client does not wrap all of it."""


class GreedyStreams:
    """Every answer has exactly `max_tokens` tokens. Leaving the block waits for all of them."""

    def __init__(self, server: Server, prompts: Sequence[str | Sequence[int]], max_tokens: int) -> None:
        self._client = server.client()
        self._max_tokens = max_tokens
        self._num_chunks = [0] * len(prompts)
        self._executor = ThreadPoolExecutor(len(prompts))
        self._ends: list[Future[str]] = [
            self._executor.submit(self._stream, number, prompt) for number, prompt in enumerate(prompts)
        ]

    def _stream(self, number: int, prompt: str | Sequence[int]) -> str:
        text = ""
        with self._client.completions.create(
            model=MODEL,
            prompt=prompt if isinstance(prompt, str) else list(prompt),
            max_tokens=self._max_tokens,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            for chunk in stream:
                text += "".join(choice.text for choice in chunk.choices)
                self._num_chunks[number] += 1
        return text

    @property
    def num_chunks(self) -> int:
        """Of all streams together."""
        return sum(self._num_chunks)

    def wait_until_reading(self, num_chunks: int = 2) -> None:
        """Until each stream has brought so many pieces of text."""
        assert eventually(lambda: min(self._num_chunks) >= num_chunks, PATIENCE_S), self.failures()

    @property
    def is_running(self) -> bool:
        return not all(end.done() for end in self._ends)

    def texts(self) -> list[str]:
        """Wait for all answers. Raises what the first stream that broke raised."""
        return [end.result(PATIENCE_S) for end in self._ends]

    def failures(self) -> list[BaseException]:
        """Wait for all; return how they broke, those that did."""
        errors = [end.exception(PATIENCE_S) for end in self._ends]
        return [error for error in errors if error is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._client.close()  # do not wait for what will not come
        self._executor.shutdown()
        self._client.close()


def greedy_texts(server: Server, prompts: Sequence[str | Sequence[int]], max_tokens: int) -> list[str]:
    with GreedyStreams(server, prompts, max_tokens) as streams:
        return streams.texts()


def running_requests(server: Server) -> int:
    return server.status().running_requests


def wait_until_computing(server: Server, count: int) -> None:
    """Until so many requests have been taken up; tokens may take a while yet."""
    assert eventually(lambda: running_requests(server) >= count, PATIENCE_S)
