"""`butterfly chat MODEL`: a conversation in the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from typing import Annotated

import msgspec
import typer

from butterfly.cli.console import console, errors, loading_progress, print_error, set_up_logging
from butterfly.cli.options import (
    Context,
    Device,
    DType,
    LogLevel,
    MaxTokens,
    Memory,
    ModelArgument,
    Seed,
    Temperature,
    Threads,
    TopP,
    Weights,
    Workers,
    cluster_config,
)
from butterfly.cli.prompting import Answer, make_sampling, stream_answer
from butterfly.embedded import EmbeddedCluster, embedded_cluster
from butterfly.errors import ConfigError, RequestError
from butterfly.specs import SamplingSpec


def chat(
    model: ModelArgument,
    workers: Workers = 1,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: MaxTokens = 1024,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    seed: Seed = None,
    device: Device = "auto",
    dtype: DType = "auto",
    weights: Weights = "auto",
    threads: Threads = 0,
    memory: Memory = "",
    context: Context = 0,
    log_level: LogLevel = "warning",
) -> None:
    """Talk to MODEL. Ctrl-C stops an answer; /new starts over; /exit or Ctrl-D leaves."""
    set_up_logging(log_level)
    config = cluster_config(model, workers, device, dtype, weights, threads, memory, context)
    config = msgspec.structs.replace(config, max_num_sequences=1)
    with embedded_cluster(config, loading_progress) as cluster:
        if cluster.model.chat_template is None:
            raise ConfigError(f"{model} has no chat template; use `butterfly generate {model} --raw` instead")
        cluster.wait_until_ready()
        errors.print("/new starts over, /exit leaves, Ctrl-C stops an answer")
        sampling = make_sampling(temperature, 0, top_p, 0.0, seed)
        converse(cluster, system, max_tokens, sampling)


def converse(cluster: EmbeddedCluster, system: str, max_tokens: int, sampling: SamplingSpec) -> None:
    """Read lines and answer them until the user leaves."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text must not end the conversation
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while (line := read_line()) is not None:
        if line == "/new":
            messages = list(opening)
        elif line:
            question = {"role": "user", "content": line}
            text = answer_text(cluster, [*messages, question], max_tokens, sampling)
            if text:  # what was refused or stopped at once leaves no trace in the conversation
                messages += [question, {"role": "assistant", "content": text}]


def read_line() -> str | None:
    """The next line, or None when the user leaves."""
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    return None if line in ("/exit", "/quit") else line


def answer_text(
    cluster: EmbeddedCluster, messages: list[dict[str, str]], max_tokens: int, sampling: SamplingSpec
) -> str:
    """Stream one answer and return its text; what was stopped is a partial one."""
    assert cluster.model.chat_template is not None
    answer = Answer()
    try:
        prompt = cluster.model.chat_template.render(messages)
        token_ids = cluster.model.tokenizer.encode(prompt, add_special_tokens=False)
        asyncio.run(stream_answer(cluster, token_ids, max_tokens, sampling, answer))
    except KeyboardInterrupt:
        console.print()
    except RequestError as error:
        print_error(str(error))
    return answer.text


with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - line editing and history for input()
