"""What to ask of a server, and what came of each request."""

from __future__ import annotations

import math

from butterfly.errors import ConfigError
from butterfly.specs import Spec


class LoadSpec(Spec, frozen=True):
    """One run: `concurrency` requests at a time (closed loop) or `rate_per_s` Poisson arrivals (open loop)."""

    url: str  # of the server, with or without /v1
    model: str = ""  # "": the first that /v1/models lists
    chat: bool = False  # /v1/chat/completions instead of /v1/completions
    num_requests: int = 16
    num_warmup: int | None = None  # requests before them that are not counted; None: as many as run at a time
    concurrency: int | None = None  # neither this nor a rate: 1
    rate_per_s: float | None = None
    num_input_tokens: int = 128  # exact where the server takes token ids
    num_output_tokens: int = 64  # exact where the server takes ignore_eos or min_tokens
    num_shared_tokens: int = 0  # that begin every prompt; the others are random
    token_ids: tuple[int, int] = (100, 20_000)  # prompts are drawn from [first, last): in most vocabularies
    temperature: float = 0.0
    seed: int | None = None  # of prompts and arrivals; None: a fresh one
    timeout_s: float = 600.0  # for one request
    slo_ttft_s: float | None = None  # goodput counts the requests that are at least this fast
    slo_tpot_s: float | None = None
    api_key: str = ""  # never in a report


class RequestRecord(Spec, frozen=True):
    """One request as its client saw it. Times are seconds since it was sent, but for `started_s`."""

    index: int
    started_s: float  # since the measurement began
    lag_s: float = 0.0  # how long after its arrival it was sent (open loop)
    failure: str = ""  # why it failed; "": completed
    finish_reason: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None  # None for an output of one token
    e2e_s: float | None = None
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0  # of the input, found in a prefix cache (where the server says so)
    chunk_times_s: tuple[float, ...] = ()  # arrivals of chunks with output


def check(spec: LoadSpec) -> None:
    """Raises ConfigError for a run that cannot be made."""
    first, last = spec.token_ids
    problems = (
        (spec.concurrency is not None and spec.rate_per_s is not None, "give a concurrency or a rate, not both"),
        (spec.concurrency is not None and spec.concurrency < 1, "the concurrency must be at least 1"),
        (spec.rate_per_s is not None and not _is_positive(spec.rate_per_s), "the rate must be more than 0 per second"),
        (spec.num_requests < 1, "there must be at least one request"),
        (spec.num_warmup is not None and spec.num_warmup < 0, "the number of warm-up requests must not be negative"),
        (spec.num_input_tokens < 1 or spec.num_output_tokens < 1, "inputs and outputs have at least one token"),
        (
            not 0 <= spec.num_shared_tokens <= spec.num_input_tokens,
            f"the shared prefix must have 0 to {spec.num_input_tokens} tokens, as the whole input has no more",
        ),
        (not 0 <= first < last, f"token ids from {first} up to {last} are none"),
        (spec.temperature < 0, "the temperature must not be negative"),
        (spec.seed is not None and spec.seed < 0, "the seed must not be negative"),
        (not _is_positive(spec.timeout_s), "the timeout must be more than 0 seconds"),
    )
    for is_wrong, problem in problems:
        if is_wrong:
            raise ConfigError(problem)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
