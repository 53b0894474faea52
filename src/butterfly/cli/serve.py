"""`butterfly serve MODEL`: the OpenAI API over a cluster of local workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

import msgspec
import typer

from butterfly.api import ApiServer, BoundPort, ServedModel, create_app
from butterfly.cli.console import console, plan_table, print_error, set_up_logging
from butterfly.cli.embedded import EmbeddedCluster, embedded_cluster
from butterfly.cli.options import (
    Context,
    Device,
    DType,
    Encrypt,
    HeartbeatTimeout,
    LogLevel,
    MaxSequences,
    Memory,
    ModelArgument,
    Slots,
    StepTimeout,
    Threads,
    Workers,
    cluster_config,
)
from butterfly.errors import LaunchError
from butterfly.specs import ClusterStatus, ComputeDType

_GRACE_S = 2  # for last words to clients when the server is told to stop


def serve(
    model: ModelArgument,
    workers: Workers = 1,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
    served_name: Annotated[str, typer.Option("--served-model-name", help="The model's id in the API.")] = "",
    device: Device = "auto",
    dtype: DType = "auto",
    threads: Threads = 0,
    memory: Memory = "",
    context: Context = 0,
    max_sequences: MaxSequences = 8,
    slots: Slots = 0,
    encrypt: Encrypt = True,
    heartbeat_timeout: HeartbeatTimeout = 10.0,
    step_timeout: StepTimeout = 300.0,
    log_level: LogLevel = "warning",
) -> None:
    """Serve MODEL through an OpenAI-compatible API, its layers spread over local workers."""
    set_up_logging(log_level)
    config = cluster_config(model, workers, device, dtype, threads, memory, context)
    config = msgspec.structs.replace(
        config,
        max_num_sequences=max_sequences,
        num_slots=slots,
        encrypt=encrypt,
        heartbeat_timeout_s=heartbeat_timeout,
        step_timeout_s=step_timeout,
    )
    with closing(BoundPort(host, port)) as bound, embedded_cluster(config) as cluster:
        served = served_model(cluster, served_name, model)
        app = create_app(cluster.client, served, metrics=cluster.metrics)
        with ApiServer(app, bound, grace_s=_GRACE_S) as server, ended_requests(cluster):
            status = cluster.wait_until_ready()
            announce(status, served, bound.url)
            warn_of_company(config.dtype, status)
            wait_for_the_end(cluster, server)


def served_model(cluster: EmbeddedCluster, served_name: str, reference: str) -> ServedModel:
    """The model as API clients see it; what the user typed works as its id too."""
    model = cluster.model
    return ServedModel(
        id=served_name or model.display_name,
        tokenizer=model.tokenizer,
        max_context=model.spec.max_context,
        chat_template=model.chat_template,
        eos_token_ids=model.eos_token_ids,
        created=int(time.time()),
        aliases=() if served_name else (reference,),
    )


def announce(status: ClusterStatus, served: ServedModel, url: str) -> None:
    """Say where each layer lives, and a line to try."""
    assert status.plan is not None
    console.print(plan_table(status.plan))
    console.print(
        f"predicted {status.plan.predicted_tpot_s * 1e3:.1f} ms per token "
        f"(bound {status.plan.bound_tpot_s * 1e3:.1f} ms; {status.plan.binding})"
    )
    console.print(f"\nServing {served.id} at {url}/v1   (Ctrl-C stops)\nTry:", markup=False)
    route, what = ("completions", '"prompt": "Once upon a time"')
    if served.chat_template is not None:
        route, what = ("chat/completions", '"messages": [{"role": "user", "content": "Why is the sky blue?"}]')
    body = f'{{"model": "{served.id}", {what}, "max_tokens": 100}}'
    line = f"  curl {url}/v1/{route} -H 'Content-Type: application/json' -d '{body}'"
    console.print(line, markup=False, soft_wrap=True)


@contextmanager
def ended_requests(cluster: EmbeddedCluster) -> Iterator[None]:
    """After the block, tell every client that still waits why, while the API can still do so."""
    try:
        yield
    finally:
        cluster.client.stop("the server was stopped")


def warn_of_company(dtype: ComputeDType, status: ClusterStatus) -> None:
    """Say so where the same request need not give the same tokens in other company."""
    if dtype != "bfloat16" or any(worker.device != "cpu" for worker in status.workers):
        console.print("note: only bfloat16 on CPUs promises the same tokens whatever else is in the batch")


def wait_for_the_end(cluster: EmbeddedCluster, server: ApiServer) -> None:
    """Wait for Ctrl-C or SIGTERM. A failed cluster stays up to tell clients why.

    Raises LaunchError when the coordinator itself or the API ends: nobody could be told anything any more.
    """
    was_ready = True
    while cluster.client.is_alive and server.is_alive:
        status = cluster.client.status()
        if was_ready and status.phase == "failed":
            print_error(f"{status.detail}; requests are refused until the server is started again")
            was_ready = False
        time.sleep(0.2)
    raise LaunchError("the coordinator or the API stopped on an internal error; its traceback stands above")
