"""Whether a request may queue at all: is it well formed, can it ever fit, and is there not too much before it?"""

from __future__ import annotations

from butterfly.errors import ContextLengthError, InvalidRequestError, OverloadedError
from butterfly.scheduling.config import SchedulerConfig
from butterfly.scheduling.waiting import WaitingLine
from butterfly.specs import Request


def refuse_malformed(request: Request) -> None:
    """Raise InvalidRequestError for an empty prompt or no token to generate."""
    name = request.request_id
    if not request.prompt_token_ids:
        raise InvalidRequestError("the prompt has no tokens", "prompt", name)
    if request.max_tokens < 1:
        raise InvalidRequestError(f"max_tokens must be at least 1, not {request.max_tokens}", "max_tokens", name)


def clip_max_tokens(request: Request, config: SchedulerConfig) -> int:
    """Return how many tokens the request may generate, or raise ContextLengthError."""
    num_prompt, max_context = len(request.prompt_token_ids), config.max_context
    if num_prompt + 1 > max_context:
        raise ContextLengthError(
            f"the prompt has {num_prompt} tokens, but the context of {max_context} tokens "
            f"must hold it and at least one more",
            "prompt",
            request.request_id,
        )
    max_tokens = min(request.max_tokens, max_context - num_prompt)
    capacity = config.num_blocks * config.block_size
    if num_prompt + max_tokens > capacity:
        raise ContextLengthError(
            f"prompt of {num_prompt} + max_tokens {max_tokens} = {num_prompt + max_tokens} tokens "
            f"can never fit the KV cache of {capacity} tokens",
            "prompt" if num_prompt + 1 > capacity else "max_tokens",
            request.request_id,
        )
    return max_tokens


def refuse_overload(request: Request, line: WaitingLine, tokens_per_s: float | None, config: SchedulerConfig) -> None:
    """Raise OverloadedError where the line is full. `tokens_per_s`: of prefill; None: not known yet.

    An empty line takes a prompt of any length, so that none is refused for ever.
    """
    waiting, limit = line.num_tokens, config.max_waiting_tokens
    if tokens_per_s is not None:
        limit = int(min(limit, config.target_ttft_s * tokens_per_s))
    if not len(line) or waiting + len(request.prompt_token_ids) <= limit:
        return
    retry_after_s = config.retry_after_s if tokens_per_s is None else max(1.0, waiting / tokens_per_s)
    raise OverloadedError(
        f"{len(line)} requests with {waiting} tokens wait, and the queue takes {limit} "
        f"at the speed of this cluster; try again in {retry_after_s:.0f} s",
        retry_after_s,
        request.request_id,
    )
