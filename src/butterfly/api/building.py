"""From a checked body to the engine requests of a call: tokens, limits, sampling, seeds."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from butterfly.api.bodies import (
    DEFAULT_COMPLETION_TOKENS,
    MAX_CHOICES,
    ChatBody,
    CompletionBody,
    GenerationBody,
)
from butterfly.api.interfaces import ServedModel, Tokenizer
from butterfly.api.problems import UnknownModelError
from butterfly.errors import ContextLengthError, InvalidRequestError
from butterfly.specs import Request, SamplingSpec

# A text this long takes some ten milliseconds to encode, during which every stream would stand still.
_LONG_TEXT_CHARACTERS = 16_384
_SEED_MASK = 2**64 - 1
_SEED_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: no two choices of a call share a seed


@dataclass(frozen=True, slots=True)
class Job:
    """The engine requests of one HTTP call; the position of a request is the index of its choice."""

    requests: tuple[Request, ...]
    stops: tuple[str, ...]
    num_prompt_tokens: int  # each prompt once, however many choices it has


def choice_seed(seed: int, choice: int) -> int:
    """Return the 64-bit seed of choice number `choice` of a prompt.

    (seed + choice * 0x9E3779B97F4A7C15) mod 2^64. Choice 0 uses the seed itself, so it is the answer that
    the same call with n = 1 gives; negative seeds count as their two's complement.
    """
    return (seed + choice * _SEED_STRIDE) & _SEED_MASK


def check_model(model: ServedModel, asked_for: str) -> None:
    """Raises UnknownModelError unless `asked_for` is the served model's id or alias."""
    if asked_for != model.id and asked_for not in model.aliases:
        raise UnknownModelError(f"the model '{asked_for}' is not served here; '{model.id}' is", "model")


async def chat_job(model: ServedModel, body: ChatBody, answer_id: str) -> Job:
    """Return one request per choice. Raises InvalidRequestError or ContextLengthError."""
    check_model(model, body.model)
    if model.chat_template is None:
        raise InvalidRequestError(f"'{model.id}' has no chat template; use /v1/completions", "messages")
    text = model.chat_template.render([message.for_template() for message in body.messages])
    # The template writes the special tokens itself.
    prompt = await _encode(model.tokenizer, text, add_special_tokens=False)
    limit = body.max_completion_tokens or body.max_tokens
    return _job(model, body, [prompt], _max_tokens(model, [prompt], limit, None, "messages"), answer_id)


async def completion_job(model: ServedModel, body: CompletionBody, answer_id: str) -> Job:
    """Return one request per prompt and choice, the choices of a prompt side by side."""
    check_model(model, body.model)
    prompts = [await _prompt_tokens(model, prompt) for prompt in body.prompt]
    limits = _max_tokens(model, prompts, body.max_tokens, DEFAULT_COMPLETION_TOKENS, "prompt")
    return _job(model, body, prompts, limits, answer_id)


def _job(
    model: ServedModel, body: GenerationBody, prompts: Sequence[list[int]], limits: list[int], answer_id: str
) -> Job:
    num_choices = body.n or 1
    if len(prompts) * num_choices > MAX_CHOICES:
        raise InvalidRequestError(
            f"{len(prompts)} prompts times n={num_choices} are more than {MAX_CHOICES} choices", "n"
        )
    seed = secrets.randbits(64) if body.seed is None else body.seed
    samplings = [_sampling(body, choice_seed(seed, choice)) for choice in range(num_choices)]
    stop_token_ids = () if body.ignore_eos else model.eos_token_ids
    requests = [
        Request(
            request_id=f"{answer_id}-{index * num_choices + choice}",
            prompt_token_ids=tuple(prompt),
            max_tokens=limit,
            sampling=sampling,
            stop_token_ids=stop_token_ids,
        )
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
        for choice, sampling in enumerate(samplings)
    ]
    return Job(tuple(requests), tuple(body.stop or ()), sum(len(prompt) for prompt in prompts))


def _sampling(body: GenerationBody, seed: int) -> SamplingSpec:
    top_k = max(0, body.top_k or 0)
    # OpenAI allows top_p 0: the nucleus is then the most likely token alone.
    only_best = body.top_p == 0
    return SamplingSpec(
        seed=seed,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=1 if only_best else top_k,
        top_p=1.0 if body.top_p is None or only_best else body.top_p,
        min_p=body.min_p or 0.0,
    )


def _max_tokens(
    model: ServedModel, prompts: Sequence[list[int]], asked: int | None, default: int | None, param: str
) -> list[int]:
    """Return how many tokens each prompt may produce; `default` None is the rest of the context."""
    limits = []
    for prompt in prompts:
        room = model.max_context - len(prompt)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, but the context of '{model.id}' is {model.max_context} "
                "tokens for prompt and output together; shorten the prompt",
                param,
            )
        if asked is not None and asked > room:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {asked}, together "
                f"{len(prompt) + asked}, but the context of '{model.id}' is {model.max_context} tokens; "
                f"at most {room} output tokens fit",
                param,
            )
        limits.append(asked if asked is not None else min(room, default or room))
    return limits


async def _prompt_tokens(model: ServedModel, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        tokens = await _encode(model.tokenizer, prompt, add_special_tokens=True)
    else:
        tokens = prompt
        unknown = next((token for token in tokens if not 0 <= token < model.tokenizer.vocab_size), None)
        if unknown is not None:
            raise InvalidRequestError(
                f"prompt: {unknown} is not a token id; they go from 0 to {model.tokenizer.vocab_size - 1}",
                "prompt",
            )
    if not tokens:
        raise InvalidRequestError("prompt: must have at least one token", "prompt")
    return tokens


async def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) < _LONG_TEXT_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
