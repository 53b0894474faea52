"""`butterfly generate MODEL PROMPT`: one answer, streamed to the terminal."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
import typer

from butterfly.cli.console import errors, format_bytes, loading_progress, set_up_logging
from butterfly.cli.options import (
    Context,
    Device,
    DType,
    LogLevel,
    MaxTokens,
    Memory,
    MinP,
    ModelArgument,
    Seed,
    Slots,
    Temperature,
    Threads,
    TopK,
    TopP,
    Weights,
    Workers,
    cluster_config,
)
from butterfly.cli.prompting import Answer, check_it_fits, make_sampling, stream_answer
from butterfly.embedded import EmbeddedCluster, embedded_cluster


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to answer (or, with --raw, to continue).")],
    workers: Workers = 1,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")] = False,
    system: Annotated[str, typer.Option(help="System message, when the model has a chat template.")] = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print TTFT, TPOT and the time of each stage.")] = False,
    device: Device = "auto",
    dtype: DType = "auto",
    weights: Weights = "auto",
    threads: Threads = 0,
    memory: Memory = "",
    context: Context = 0,
    slots: Slots = 0,
    log_level: LogLevel = "warning",
) -> None:
    """Answer one PROMPT on the terminal. Models without a chat template continue the text."""
    set_up_logging(log_level)
    config = cluster_config(model, workers, device, dtype, weights, threads, memory, context)
    config = msgspec.structs.replace(config, num_slots=slots, max_num_sequences=1)
    with embedded_cluster(config, loading_progress) as cluster:
        token_ids = prompt_tokens(cluster, prompt, system, raw)
        check_it_fits(token_ids, cluster.model.spec.max_context)
        sampling = make_sampling(temperature, top_k, top_p, min_p, seed)
        cluster.wait_until_ready()
        answer = Answer(num_prompt_tokens=len(token_ids))
        asyncio.run(stream_answer(cluster, token_ids, max_tokens, sampling, answer))
        if stats:
            print_stats(cluster, answer)


def prompt_tokens(cluster: EmbeddedCluster, prompt: str, system: str, raw: bool) -> list[int]:
    """Token ids of the prompt: through the chat template when the model has one and `raw` is off."""
    template, tokenizer = cluster.model.chat_template, cluster.model.tokenizer
    if raw or template is None:
        return tokenizer.encode(prompt)
    messages = [{"role": "system", "content": system}] if system else []
    text = template.render([*messages, {"role": "user", "content": prompt}])
    return tokenizer.encode(text, add_special_tokens=False)


def print_stats(cluster: EmbeddedCluster, answer: Answer) -> None:
    """Print what the request took and where: medians over its decode steps."""
    steps = cluster.statistics.summary()
    tpot_s = answer.tpot_s
    errors.print(
        f"prompt {answer.num_prompt_tokens} tokens, TTFT {answer.ttft_s * 1e3:.1f} ms; "
        f"output {len(answer.token_times_s)} tokens, TPOT {tpot_s * 1e3:.2f} ms"
        + (f" ({1 / tpot_s:.1f} tokens/s)" if tpot_s else "")
    )
    for stage in steps.stages:
        errors.print(f"  {stage.worker}: compute {stage.compute_s * 1e3:.2f} ms per token")
    errors.print(
        f"  software per hop {steps.software_s_per_hop * 1e3:.3f} ms, {format_bytes(steps.sent_bytes)} sent per token"
    )
