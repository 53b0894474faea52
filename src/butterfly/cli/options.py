"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from typing import Annotated, get_args

import typer

from butterfly.config import ClusterConfig
from butterfly.errors import ConfigError
from butterfly.specs import ComputeDType

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a Hugging Face folder, a hub id, an alias (smollm2, gemma3-270m) or random:FAMILY,...",
    ),
]
Workers = Annotated[int, typer.Option("--workers", "-w", min=1, help="Local worker processes, one stage each.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option("--dtype", help="auto (bfloat16), bfloat16, float16 or float32.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads per worker; 0 shares the cores evenly.")]
Memory = Annotated[str, typer.Option(help="Memory per worker, such as 300M or 4G; empty shares the free memory.")]
Context = Annotated[int, typer.Option(min=0, help="Tokens of one request at most; 0 is the model's, up to 4096.")]
MaxSequences = Annotated[int, typer.Option(min=1, help="Requests that run at once.")]
Slots = Annotated[int, typer.Option(min=0, help="Steps in flight at once; 0: one per stage, 1: the plain loop.")]
StepTimeout = Annotated[float, typer.Option(min=1.0, help="Seconds that one step may take on all stages together.")]
HeartbeatTimeout = Annotated[
    float, typer.Option("--heartbeat-timeout", min=2.0, help="Seconds of silence after which a worker is given up.")
]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
Encrypt = Annotated[bool, typer.Option("--encrypt/--no-encrypt", help="Encrypt links between processes (CURVE).")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Sample among the K likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest tokens that reach P.")]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Drop tokens below P times the likeliest.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text; drawn when not given.")]


def parse_bytes(text: str) -> int:
    """'300M' -> 314572800. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is no size; write it like 300M or 4G")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_dtype(text: str) -> ComputeDType:
    """Raises ConfigError for anything but auto and the compute dtypes."""
    if text == "auto":
        return "bfloat16"
    for dtype in get_args(ComputeDType):
        if text == dtype:
            return dtype  # type: ignore[no-any-return]
    raise ConfigError(f"unknown dtype {text!r}: use auto, {', '.join(get_args(ComputeDType))}")


def check_device(text: str) -> str:
    """Raises ConfigError for what cannot be a device; whether it exists is for the worker to see."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", text) is None:
        raise ConfigError(f"unknown device {text!r}: use auto, cpu, cuda or cuda:N")
    return text


def cluster_config(
    model: str, workers: int, device: str, dtype: str, threads: int, memory: str, context: int
) -> ClusterConfig:
    """The options that every command with a model has, checked."""
    return ClusterConfig(
        model=model,
        num_workers=workers,
        device=check_device(device),
        dtype=parse_dtype(dtype),
        num_threads=threads,
        memory_bytes=parse_bytes(memory) if memory else 0,
        context=context,
    )
