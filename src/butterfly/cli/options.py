"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from butterfly.communication import local_host_towards
from butterfly.communication.identity import parse_address
from butterfly.config import ClusterConfig, PrefixReuseChoice
from butterfly.errors import CommunicationError, ConfigError
from butterfly.option_values import check_device, parse_dtype, parse_sizes, parse_weights
from butterfly.specs import LayerPin, Objective, PlanConstraints

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a Hugging Face folder, a hub id, an alias (smollm2, gemma3-270m) or random:FAMILY,...",
    ),
]
_MAX_PORT = 65535
_ANY_RAY = "auto"  # the cluster of which this machine is a node already

Workers = Annotated[int, typer.Option("--workers", "-w", min=1, help="Local worker processes, one stage each.")]
ServeWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-w",
        min=0,
        help="Local worker processes, one stage each: 1 if not given; 0: only those that join. With --ray, workers on "
        "its nodes; if not given, or 0: one on each node, or on each GPU, and on nodes that come later.",
    ),
]
Ray = Annotated[
    str,
    typer.Option(
        "--ray",
        metavar="HOST:PORT",
        help="Start the workers on the nodes of the Ray cluster with this address, of which this machine is one.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option("--dtype", help="auto (bfloat16), bfloat16, float16 or float32.")]
Weights = Annotated[
    str,
    typer.Option(
        help="What quantised matrices are held as: int4 (about as stored), int8 (prompts and many streams are faster, "
        "one stream is slower), mixed (both: int8 for prompts, int4 for generated tokens), or auto: mixed where the "
        "CPU, the model's size and the memory suit it, else int4."
    ),
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads per worker; 0 shares the cores evenly.")]
Memory = Annotated[
    str,
    typer.Option(
        help="Memory of each worker, such as 300M or 4G, or of one after the other: 300M,1G; empty shares what is free."
    ),
]
Context = Annotated[int, typer.Option(min=0, help="Tokens of one request at most; 0 is the model's, up to 4096.")]
MeanContext = Annotated[
    int,
    typer.Option(
        "--mean-context",
        min=0,
        help="Tokens that a stream has on average, to plan for; 0: half of --context, up to 512.",
    ),
]
MaxSequences = Annotated[int, typer.Option(min=1, help="Requests that run at once.")]
KVTokens = Annotated[
    int, typer.Option("--kv-tokens", min=0, help="Tokens of KV cache in all; 0: --context times --max-sequences.")
]
PrefixReuseOption = Annotated[
    PrefixReuseChoice,
    typer.Option(
        "--prefix-reuse",
        help="KV cache that a request may start from: of any tokens, of prompts, none; "
        "auto: all that changes no answer.",
    ),
]
MaxBatchedTokens = Annotated[int, typer.Option("--max-batched-tokens", min=1, help="Tokens of one step at most.")]
TargetTTFT = Annotated[
    float,
    typer.Option(
        "--target-ttft", min=0.1, help="Seconds to the first token; requests that would wait longer are refused."
    ),
]
RequestTimeout = Annotated[
    float, typer.Option("--request-timeout", min=0.0, help="Seconds that a request may take; 0: as long as it needs.")
]
ServerKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="A key that clients must send, or 'label: KEY'; repeatable. Others see it in the process list: better "
        "give a file, or BUTTERFLY_API_KEY.",
    ),
]
KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", help="API keys, one a line, that only you may read (chmod 600).")
]
NoKey = Annotated[bool, typer.Option("--no-api-key", help="Let other machines in without a key.")]
CertFile = Annotated[
    Path | None, typer.Option("--ssl-certfile", help="Certificate (PEM, with its chain): serve HTTPS.")
]
CertKeyFile = Annotated[Path | None, typer.Option("--ssl-keyfile", help="Private key (PEM) of the certificate.")]
Slots = Annotated[
    int, typer.Option(min=0, help="Steps in flight; 0: one per stage and a spare one, 1: the plain loop.")
]
StepTimeout = Annotated[float, typer.Option(min=1.0, help="Seconds that one step may take on all stages together.")]
HeartbeatTimeout = Annotated[
    float, typer.Option("--heartbeat-timeout", min=1.5, help="Seconds of silence after which a worker is given up.")
]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
Encrypt = Annotated[bool, typer.Option("--encrypt/--no-encrypt", help="Encrypt links between processes (CURVE).")]
Listen = Annotated[
    str,
    typer.Option(
        "--listen",
        metavar="HOST[:PORT]",
        help="Address at which workers on other machines reach this one; if not given, 127.0.0.1, or that towards "
        "--ray. With a port, who has the join line may join there; the port after it is used too.",
    ),
]
Discoverable = Annotated[
    bool, typer.Option("--discover", help="With --listen HOST:PORT, let workers find this server by mDNS.")
]
StartWith = Annotated[
    list[str] | None,
    typer.Option(
        "--start-with",
        metavar="WORDS",
        help="Words before the command of a worker, such as 'taskset -c 0' or 'ip netns exec NAME'; "
        "repeatable, one for each worker in order.",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layers", metavar="NODE=A:B", help="This node holds layers A to B, B excluded; repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="NODE", help="This node holds nothing; repeatable.")
]
ObjectiveOption = Annotated[
    Objective,
    typer.Option("--objective", help="What is made fast: latency of one stream, throughput of all, or both balanced."),
]
AllWorkers = Annotated[
    bool | None,
    typer.Option(
        "--all-workers/--best-workers",
        help="Every worker holds layers, or only those with which the plan is best; the others stand by. All, if not "
        "given, but the best where others may join.",
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure",
        help="Measure workers and links for some seconds (and keep what workers took) before the plan is made.",
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Sample among the K likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest tokens that reach P.")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Drop tokens below P times the likeliest.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text; drawn when not given.")]


def split_prefixes(start_with: list[str] | None) -> tuple[tuple[str, ...], ...]:
    """The words of each --start-with, as a shell splits them. Raises ConfigError."""
    try:
        return tuple(tuple(shlex.split(words)) for words in start_with or ())
    except ValueError as error:
        raise ConfigError(f"--start-with {start_with}: {error}") from error


def parse_pin(text: str) -> LayerPin:
    """'laptop=0:14' -> layers [0, 14) on laptop. Raises ConfigError."""
    match = re.fullmatch(r"(.+)=(\d+):(\d+)", text)
    if match is None:
        raise ConfigError(f"--layers {text!r} is no range of layers on a node; write it like laptop=0:14")
    return LayerPin(node=match[1], start=int(match[2]), end=int(match[3]))


def parse_listen(text: str, *, discoverable: bool, ray: str = "") -> tuple[str, int]:
    """HOST or HOST:PORT; port 0: nobody may join. Nothing: where workers of our own reach us. Raises ConfigError."""
    text = text or own_host(ray)
    is_host = ":" not in text or (text.count(":") > 1 and not text.startswith("["))
    host, port = (text, 0) if is_host else parse_address(text)
    if discoverable and not port:
        raise ConfigError("--discover lets others join: say where, with --listen HOST:PORT")
    if port == _MAX_PORT:
        raise ConfigError(f"--listen {text}: the port after it is needed too")
    return host, port


def own_host(ray: str) -> str:
    """The address of this machine for workers that it starts itself, or that Ray starts. Raises ConfigError."""
    if not ray:
        return "127.0.0.1"
    if ray == _ANY_RAY:
        raise ConfigError(
            "--ray auto does not say where the nodes are: add --listen HOST, the address at which they reach this one"
        )
    try:
        host = local_host_towards(f"tcp://{ray}")
    except CommunicationError as error:
        raise ConfigError(f"--ray {ray}: {error}") from error
    return host


def check_ray(ray: str) -> str:
    """Return the address as it was given. Raises ConfigError."""
    if ray and ray != _ANY_RAY:
        parse_address(ray)
    return ray


def plan_constraints(
    layers: list[str] | None, exclude: list[str] | None, *, max_nodes: int = 0, use_all: bool = False
) -> PlanConstraints:
    """What --layers and --exclude ask for. With --layers, other nodes get what is left, if it is any."""
    return PlanConstraints(
        layers=tuple(parse_pin(text) for text in layers or ()),
        exclude=tuple(exclude or ()),
        max_nodes=max_nodes,
        use_all=use_all and not layers,
    )


def cluster_config(
    model: str, workers: int, device: str, dtype: str, weights: str, threads: int, memory: str, context: int
) -> ClusterConfig:
    """The options that every command with a model has, checked."""
    return ClusterConfig(
        model=model,
        num_workers=workers,
        device=check_device(device),
        dtype=parse_dtype(dtype),
        weights=parse_weights(weights),
        num_threads=threads,
        memory_bytes=parse_sizes(memory),
        context=context,
    )
