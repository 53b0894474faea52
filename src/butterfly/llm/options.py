"""The options of a cluster as Python callers give them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypedDict, Unpack, get_args

from butterfly.config import ClusterConfig, PrefixReuseChoice
from butterfly.errors import ConfigError
from butterfly.option_values import check_device, parse_dtype, parse_sizes, parse_weights

ANY_WAIT_S = 1e9


class ClusterOptions(TypedDict, total=False):
    """All optional; the names are those of the command line."""

    workers: int  # local worker processes, one stage each; 1
    device: str  # auto, cpu, cuda or cuda:N
    dtype: str  # auto (bfloat16), bfloat16, float16 or float32
    weights: str  # of quantised matrices: int4, int8, mixed, or auto: mixed where CPU, size and memory suit it
    threads: int  # CPU threads per worker; 0 shares the cores evenly
    memory: str | int | None  # per worker: "4G", "4G,1G" (one each) or bytes; None shares the free memory
    context: int  # tokens of one request at most; 0 is the model's, up to 4096
    max_sequences: int  # requests that run at once; 8
    slots: int  # steps in flight; 0: one per stage and one spare, 1: the plain loop
    kv_tokens: int  # tokens of KV cache in all; 0: context x max_sequences
    prefix_reuse: PrefixReuseChoice  # whose KV cache a request may start from; "auto": all that changes no answer
    max_batched_tokens: int  # tokens of one step at most; 512
    encrypt: bool  # links between processes (CURVE); True
    step_timeout: float  # seconds that one step may take on all stages together; 300
    heartbeat_timeout: float  # seconds of silence after which a worker is given up; 2.5


_AT_LEAST: dict[str, float] = {
    "workers": 1,
    "threads": 0,
    "memory": 1,
    "context": 0,
    "max_sequences": 1,
    "slots": 0,
    "kv_tokens": 0,
    "max_batched_tokens": 1,
    "step_timeout": 1,
    "heartbeat_timeout": 1.5,
}


def cluster_config(model: str, **options: Unpack[ClusterOptions]) -> ClusterConfig:
    """Return the checked configuration. Raises ConfigError naming the option.

    Nothing is refused for its waiting time: a caller in the same program waits for what it asked for.
    """
    _check(model, options)
    memory = options.get("memory")
    return ClusterConfig(
        model=model,
        num_workers=options.get("workers", 1),
        device=check_device(options.get("device", "auto")),
        dtype=parse_dtype(options.get("dtype", "auto")),
        weights=parse_weights(options.get("weights", "auto")),
        num_threads=options.get("threads", 0),
        memory_bytes=parse_sizes(memory) if isinstance(memory, str) else (memory,) if memory else (),
        context=options.get("context", 0),
        max_num_sequences=options.get("max_sequences", 8),
        kv_tokens=options.get("kv_tokens", 0),
        prefix_reuse=options.get("prefix_reuse", "auto"),
        max_num_batched_tokens=options.get("max_batched_tokens", 512),
        target_ttft_s=ANY_WAIT_S,
        encrypt=options.get("encrypt", True),
        num_slots=options.get("slots", 0),
        step_timeout_s=options.get("step_timeout", 300.0),
        heartbeat_timeout_s=options.get("heartbeat_timeout", 2.5),
    )


def _check(model: str, options: Mapping[str, object]) -> None:
    if not isinstance(model, str):
        raise ConfigError(f"model: expected a path, alias or hub id, got {type(model).__name__}")
    known = ClusterOptions.__annotations__
    for name, value in options.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown option {name}: {hint}")
        _check_value(name, value)


def _check_value(name: str, value: object) -> None:
    if name == "memory" and (value is None or isinstance(value, str)):
        return
    if name in ("device", "dtype", "weights"):
        fits, wanted = isinstance(value, str), "a string"
    elif name == "encrypt":
        fits, wanted = isinstance(value, bool), "True or False"
    elif name == "prefix_reuse":
        fits, wanted = (
            value in get_args(PrefixReuseChoice),
            " or ".join(repr(reuse) for reuse in get_args(PrefixReuseChoice)),
        )
    else:
        least = _AT_LEAST[name]
        kinds = (int, float) if name.endswith("_timeout") else (int,)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and value >= least
        wanted = f"{'a number' if float in kinds else 'an integer'} of at least {least:g}"
    if not fits:
        raise ConfigError(f"{name}: expected {wanted}, not {value!r}")
