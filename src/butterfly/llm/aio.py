"""`AsyncLLM`: a model that answers in an asynchronous program, piece by piece."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self, Unpack

from butterfly.embedded import EmbeddedCluster, unwatched
from butterfly.errors import NotReadyError
from butterfly.llm.answers import Answer, side_by_side
from butterfly.llm.engine import EngineThread
from butterfly.llm.options import ClusterOptions, cluster_config
from butterfly.llm.params import SamplingParams
from butterfly.llm.progress import loading_bar
from butterfly.llm.prompts import Conversation, Prompt, PromptInput, read_conversation, read_prompt
from butterfly.llm.requests import make_job
from butterfly.llm.results import Piece
from butterfly.models import Tokenizer
from butterfly.specs import ClusterStatus


class AsyncLLM:
    """A model spread over local worker processes, for programs with an event loop.

    `async with AsyncLLM(...) as llm:`, or `llm = await AsyncLLM.start(...)` and in the end `await llm.close()`. Any
    number of generations may run at once; they share the workers.
    """

    def __init__(self, model: str, *, progress: bool = True, **options: Unpack[ClusterOptions]) -> None:
        """The same as `LLM`, but nothing is started yet. Raises ConfigError."""
        self._config = cluster_config(model, **options)
        self._watching = loading_bar if progress else unwatched
        self._engine: EngineThread | None = None
        self._running: EmbeddedCluster | None = None

    @classmethod
    async def start(cls, model: str, *, progress: bool = True, **options: Unpack[ClusterOptions]) -> Self:
        """Return an LLM that is ready. Raises what the constructor of `LLM` raises."""
        llm = cls(model, progress=progress, **options)
        await llm._start()
        return llm

    async def generate(
        self, prompt: PromptInput, sampling_params: SamplingParams | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Continue a prompt (a text or token ids), yielding what comes as it comes.

        With n > 1 the pieces of the answers are mixed; each says which answer it belongs to. Leaving the loop ends
        the request: at once where the generator is closed (`contextlib.aclosing`) or the task cancelled, else as
        soon as Python drops the generator.

        Raises InvalidRequestError, OverloadedError or NotReadyError before the first piece; RequestFailedError or
        RequestTimeoutError later.
        """
        # On another thread: a long prompt takes tens of milliseconds, in which every other stream would stand still.
        read = await asyncio.to_thread(read_prompt, "prompt", prompt, self._cluster.model)
        async with aclosing(self._answer(read, sampling_params)) as pieces:
            async for piece in pieces:
                yield piece

    async def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Answer a conversation through the model's chat template; see `generate`, and `LLM.chat` for tools."""
        read = await asyncio.to_thread(read_conversation, "messages", messages, tools, self._cluster.model)
        async with aclosing(self._answer(read, sampling_params)) as pieces:
            async for piece in pieces:
                yield piece

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's: `encode(text)` and `decode(token_ids)`."""
        return self._cluster.model.tokenizer

    def status(self) -> ClusterStatus:
        """Who holds which layers, and how many requests run and wait."""
        return self._cluster.client.status()

    async def close(self) -> None:
        """End the workers; generations that still run fail. Idempotent."""
        if self._engine is not None:
            self._engine.stop()
            await asyncio.wrap_future(self._engine.ended)
            self._engine.join()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(self) -> None:
        if self._engine is not None:
            raise NotReadyError("this AsyncLLM was started before; make another")
        self._engine = EngineThread(self._config, self._watching)
        weakref.finalize(self, self._engine.stop)
        try:
            self._running = await asyncio.wrap_future(self._engine.ready)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    @property
    def _cluster(self) -> EmbeddedCluster:
        if self._running is None:
            raise NotReadyError("this AsyncLLM is not started: use `async with`, or `await AsyncLLM.start(...)`")
        return self._running

    def _answer(self, prompt: Prompt, sampling_params: SamplingParams | None) -> AsyncGenerator[Piece, None]:
        model, client = self._cluster.model, self._cluster.client
        job = make_job(prompt, sampling_params or SamplingParams(), model)
        streams = [Answer(job, index, model.tokenizer).pieces(client) for index in range(len(job.requests))]
        return streams[0] if len(streams) == 1 else side_by_side(streams)
