"""`LLM`: a model that answers in this program, call by call."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from butterfly.embedded import unwatched
from butterfly.llm.batch import Batch
from butterfly.llm.engine import EngineThread
from butterfly.llm.options import ClusterOptions, cluster_config
from butterfly.llm.params import SamplingParams
from butterfly.llm.progress import answers_bar, loading_bar
from butterfly.llm.prompts import (
    Conversation,
    Prompt,
    PromptInput,
    read_conversation,
    read_prompt,
    split_conversations,
    split_prompts,
)
from butterfly.llm.requests import make_job, pair_with_params
from butterfly.llm.results import Generation
from butterfly.models import Tokenizer
from butterfly.specs import ClusterStatus

_IN_FLIGHT_PER_SEQUENCE = 2  # with the engine: those that run, and as many that wait so that no place stays empty


class LLM:
    """A model spread over local worker processes. Starting takes seconds; then it is ready.

    Use it as a context manager, or `close()` it. What is forgotten ends with the program: no process stays behind.
    Several threads may use one LLM at once. In asynchronous programs `AsyncLLM` does not block.
    """

    def __init__(self, model: str, *, progress: bool = True, **options: Unpack[ClusterOptions]) -> None:
        """Start the workers and wait until every one has loaded its layers.

        `model` is a path, alias, hub id or `random:...`; `progress` shows bars on a terminal while it is fetched and
        loaded; `options` are those of `ClusterOptions`: workers=1, device="auto", dtype="auto", threads=0,
        memory=None, context=0, max_sequences=8, slots=0, kv_tokens=0, prefix_reuse="auto", max_batched_tokens=512,
        encrypt=True, step_timeout=300, heartbeat_timeout=2.5.

        Raises ConfigError (naming the option), ModelError, InfeasiblePlanError (the model does not fit) or
        LaunchError, and leaves nothing running.
        """
        config = cluster_config(model, **options)
        self._num_in_flight = _IN_FLIGHT_PER_SEQUENCE * config.max_num_sequences
        self._engine = EngineThread(config, loading_bar if progress else unwatched)
        weakref.finalize(self, self._engine.stop)
        try:
            self._cluster = self._engine.ready.result()
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[Generation]:
        """Continue each prompt: a text, token ids, or a list of them. Returns the results in their order.

        Raises InvalidRequestError (ContextLengthError for a prompt that is too long) naming what is wrong, before
        anything runs. Raises BatchError at the end when some prompts failed while they ran: it holds the results of
        the others. One prompt raises its own error: RequestFailedError, RequestTimeoutError or NotReadyError. Ctrl-C
        ends what runs, and leaves the LLM usable.
        """
        model = self._cluster.model
        read = [read_prompt(name, prompt, model) for name, prompt in split_prompts(prompts)]
        return self._answer(read, sampling_params, progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        progress: bool = True,
    ) -> list[Generation]:
        """Answer a conversation, or a list of them, through the model's chat template; see `generate`.

        `tools` are given to the template as they are; calls come back as the model wrote them, in the text.
        """
        model = self._cluster.model
        read = [read_conversation(name, talk, tools, model) for name, talk in split_conversations(messages)]
        return self._answer(read, sampling_params, progress)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's: `encode(text)` and `decode(token_ids)`."""
        return self._cluster.model.tokenizer

    def status(self) -> ClusterStatus:
        """Who holds which layers, and how many requests run and wait."""
        return self._cluster.client.status()

    def close(self) -> None:
        """End the workers; what still runs fails with NotReadyError. Idempotent."""
        self._engine.stop()
        self._engine.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, prompts: list[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None, progress: bool
    ) -> list[Generation]:
        model, client = self._cluster.model, self._cluster.client
        params = pair_with_params(len(prompts), sampling_params)
        jobs = [make_job(prompt, each, model) for prompt, each in zip(prompts, params, strict=True)]
        for grammar in dict.fromkeys(job.requests[0].grammar for job in jobs):
            if grammar is not None:
                self._cluster.grammars.compile(grammar)  # raises what would end the batch half done
        with answers_bar(sum(len(job.requests) for job in jobs), shown=progress) as on_answer:
            return self._engine.run(Batch(client, model.tokenizer, jobs, self._num_in_flight, on_answer).run())
