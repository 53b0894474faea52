"""`butterfly serve MODEL`: the OpenAI API over a cluster of workers that it starts, or that join."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from butterfly.api import ApiKeys, ApiServer, BoundPort, ServedModel, TlsFiles, Tokenizer, create_app, load_keys
from butterfly.cli.console import console, loading_progress, plan_table, print_error, set_up_logging
from butterfly.cli.options import (
    AllWorkers,
    CertFile,
    CertKeyFile,
    Context,
    Device,
    Discoverable,
    DType,
    Encrypt,
    Exclude,
    HeartbeatTimeout,
    KeyFile,
    KVTokens,
    Layers,
    Listen,
    LogLevel,
    MaxBatchedTokens,
    MaxSequences,
    MeanContext,
    Measure,
    Memory,
    ModelArgument,
    NoKey,
    ObjectiveOption,
    PrefixReuseOption,
    Ray,
    RequestTimeout,
    ServerKeys,
    ServeWorkers,
    Slots,
    StartWith,
    StepTimeout,
    TargetTTFT,
    Threads,
    Weights,
    check_ray,
    cluster_config,
    parse_listen,
    plan_constraints,
    split_prefixes,
)
from butterfly.embedded import EmbeddedCluster, embedded_cluster
from butterfly.errors import ConfigError, LaunchError
from butterfly.specs import ClusterStatus, ComputeDType, WeightFormat

_GRACE_S = 2  # for last words to clients when the server is told to stop


def serve(
    model: ModelArgument,
    workers: ServeWorkers = None,
    ray: Ray = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
    served_name: Annotated[str, typer.Option("--served-model-name", help="The model's id in the API.")] = "",
    device: Device = "auto",
    dtype: DType = "auto",
    weights: Weights = "auto",
    threads: Threads = 0,
    memory: Memory = "",
    context: Context = 0,
    mean_context: MeanContext = 0,
    max_sequences: MaxSequences = 8,
    kv_tokens: KVTokens = 0,
    prefix_reuse: PrefixReuseOption = "auto",
    max_batched_tokens: MaxBatchedTokens = 512,
    objective: ObjectiveOption = "balanced",
    layers: Layers = None,
    exclude: Exclude = None,
    all_workers: AllWorkers = None,
    measure: Measure = True,
    slots: Slots = 0,
    target_ttft: TargetTTFT = 60.0,
    request_timeout: RequestTimeout = 0.0,
    api_key: ServerKeys = None,
    api_key_file: KeyFile = None,
    no_api_key: NoKey = False,
    ssl_certfile: CertFile = None,
    ssl_keyfile: CertKeyFile = None,
    encrypt: Encrypt = True,
    listen: Listen = "",
    discoverable: Discoverable = False,
    start_with: StartWith = None,
    heartbeat_timeout: HeartbeatTimeout = 2.5,
    step_timeout: StepTimeout = 300.0,
    log_level: LogLevel = "warning",
) -> None:
    """Serve MODEL through an OpenAI-compatible API, its layers spread over workers: local ones, Ray's, or who joins."""
    set_up_logging(log_level)
    keys = load_keys(api_key or (), api_key_file, os.environ)
    tls = tls_files(ssl_certfile, ssl_keyfile)
    listen_host, listen_port = parse_listen(listen, discoverable=discoverable, ray=check_ray(ray))
    num_workers = (0 if ray else 1) if workers is None else workers
    config = cluster_config(model, num_workers, device, dtype, weights, threads, memory, context)
    config = msgspec.structs.replace(
        config,
        ray_address=ray,
        mean_context=mean_context,
        max_num_sequences=max_sequences,
        kv_tokens=kv_tokens,
        prefix_reuse=prefix_reuse,
        max_num_batched_tokens=max_batched_tokens,
        objective=objective,
        constraints=plan_constraints(
            layers,
            exclude,
            use_all=not (listen_port or (ray and not num_workers)) if all_workers is None else all_workers,
        ),
        measure=measure,
        num_slots=slots,
        target_ttft_s=target_ttft,
        encrypt=encrypt,
        listen_host=listen_host,
        listen_port=listen_port,
        discoverable=discoverable,
        worker_prefixes=split_prefixes(start_with),
        heartbeat_timeout_s=heartbeat_timeout,
        step_timeout_s=step_timeout,
    )
    with closing(BoundPort(host, port)) as bound:
        check_reach(bound, keys, no_key_needed=no_api_key)
        with embedded_cluster(config, loading_progress) as cluster:
            served = served_model(cluster, served_name, model)
            timeout_s = request_timeout or None
            app = create_app(
                cluster.client,
                served,
                metrics=cluster.metrics,
                operator=cluster.client,
                keys=keys,
                default_timeout_s=timeout_s,
            )
            with ApiServer(app, bound, grace_s=_GRACE_S, tls=tls) as server, ended_requests(cluster):
                invite(cluster.join_line, is_open=config.is_open)
                status = cluster.wait_until_ready()
                announce(status, served, server.url, wants_key=keys is not None, weights=cluster.weights)
                warn_of_company(config.dtype, status)
                warn_of_eavesdroppers(bound, tls)
                wait_for_the_end(cluster, server)


def tls_files(certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """Raises ConfigError for files that cannot be used, and for one without the other."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("--ssl-certfile and --ssl-keyfile belong together: give both, or neither")
    return TlsFiles(certificate, key)


def check_reach(bound: BoundPort, keys: ApiKeys | None, *, no_key_needed: bool) -> None:
    """Raises ConfigError when other machines could use the port and nobody has said who may."""
    if keys is not None and no_key_needed:
        raise ConfigError("there are API keys, and --no-api-key: leave out one of them (see BUTTERFLY_API_KEY, too)")
    if keys is None and not no_key_needed and not bound.is_loopback:
        raise ConfigError(
            f"other machines can reach --host {bound.host or repr('')}, and there is no API key: give --api-key-file, "
            "or --no-api-key to let everybody in"
        )


def served_model(cluster: EmbeddedCluster, served_name: str, reference: str) -> ServedModel:
    """The model as API clients see it; what the user typed works as its id too."""
    model = cluster.model
    return ServedModel(
        id=served_name or model.display_name,
        tokenizer=model.tokenizer,
        max_context=model.spec.max_context,
        chat_template=model.chat_template,
        eos_token_ids=model.eos_token_ids,
        bos_token=token_text(model.tokenizer, model.tokenizer.bos_token_id),
        eos_token=token_text(model.tokenizer, model.tokenizer.eos_token_id),
        created=int(time.time()),
        aliases=() if served_name else (reference,),
    )


def token_text(tokenizer: Tokenizer, token_id: int | None) -> str:
    """A special token as it is written; "" for none."""
    return "" if token_id is None else tokenizer.decode([token_id], skip_special_tokens=False)


def announce(
    status: ClusterStatus, served: ServedModel, url: str, *, wants_key: bool, weights: WeightFormat = "int4"
) -> None:
    """Say where each layer lives, and a line to try."""
    assert status.plan is not None
    console.print(plan_table(status.plan))
    console.print(
        f"predicted {status.plan.predicted_tpot_s * 1e3:.1f} ms per token "
        f"(bound {status.plan.bound_tpot_s * 1e3:.1f} ms; {status.plan.binding}); quantised weights in {weights}"
    )
    console.print(f"\nServing {served.id} at {url}/v1   (Ctrl-C stops)\nTry:", markup=False)
    route, what = ("completions", '"prompt": "Once upon a time"')
    if served.chat_template is not None:
        route, what = ("chat/completions", '"messages": [{"role": "user", "content": "Why is the sky blue?"}]')
    body = f'{{"model": "{served.id}", {what}, "max_tokens": 100}}'
    key = ' -H "Authorization: Bearer $BUTTERFLY_API_KEY"' if wants_key else ""
    line = f"  curl {url}/v1/{route}{key} -H 'Content-Type: application/json' -d '{body}'"
    console.print(line, markup=False, soft_wrap=True)


def invite(join_line: str, *, is_open: bool) -> None:
    """Say how other machines join. The line has a secret: it is for this terminal only."""
    if join_line:
        console.print("To add a machine, run there:", markup=False)
        console.print(f"  butterfly worker --join '{join_line}'", markup=False, soft_wrap=True, highlight=False)
    elif is_open:
        console.print("To add a machine, run `butterfly token make` here, and there what it prints.", markup=False)


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


def warn_of_eavesdroppers(bound: BoundPort, tls: TlsFiles | None) -> None:
    """Say so where keys and texts cross a network that others can read."""
    if tls is None and not bound.is_loopback:
        console.print("note: without --ssl-certfile and --ssl-keyfile, keys and texts travel unencrypted")


def wait_for_the_end(cluster: EmbeddedCluster, server: ApiServer) -> None:
    """Wait for Ctrl-C or SIGTERM, and tell what happens to the cluster meanwhile.

    Raises LaunchError when the coordinator itself or the API ends: nobody could be told anything any more.
    """
    told = cluster.client.status()
    while cluster.client.is_alive and server.is_alive:
        status = cluster.client.status()
        if (status.phase, status.epoch) != (told.phase, told.epoch):
            tell_change(status)
        told = status
        time.sleep(0.2)
    raise LaunchError("the coordinator or the API stopped on an internal error; its traceback stands above")


def tell_change(status: ClusterStatus) -> None:
    """Say that the cluster is moving, waiting, or ready again."""
    if status.phase == "ready" and status.plan is not None:
        console.print(plan_table(status.plan))
        console.print(f"ready again: {status.detail}" if status.detail else "ready again", markup=False)
    elif status.phase == "waiting":
        print_error(f"{status.detail}; requests are refused until more workers come")
    elif status.phase == "failed":
        print_error(f"{status.detail}; requests are refused until the server is started again")
    elif status.phase == "moving":
        console.print(status.detail, markup=False)
