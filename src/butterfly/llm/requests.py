"""From a prompt and its parameters to engine requests: one for each answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from butterfly.api import choice_seed
from butterfly.errors import InvalidRequestError
from butterfly.llm.params import SamplingParams
from butterfly.llm.prompts import Prompt
from butterfly.models import Model
from butterfly.specs import Request


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt to be answered; the position of a request is the index of its answer."""

    prompt: Prompt
    params: SamplingParams
    requests: tuple[Request, ...]


def make_job(prompt: Prompt, params: SamplingParams, model: Model) -> Job:
    """Return the requests of a prompt. Raises InvalidRequestError for what this model cannot do.

    The answers of one prompt differ in their seeds as the choices of one call to the HTTP API do, so the same
    seed gives the same tokens there.
    """
    _check_token_ids(params, model)
    seed = secrets.randbits(64) if params.seed is None else params.seed
    room = model.spec.max_context - len(prompt.token_ids)
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    grammar = params.grammar_spec()
    # Where a grammar is complete, only an end token is left: then they end the answer in any case.
    own_ends = () if params.ignore_eos and grammar is None else model.eos_token_ids
    request_id = f"llm-{secrets.token_hex(8)}"
    requests = tuple(
        Request(
            request_id=f"{request_id}-{index}",
            prompt_token_ids=prompt.token_ids,
            max_tokens=max_tokens,
            sampling=params.sampling_spec(choice_seed(seed, index)),
            stop_token_ids=tuple(dict.fromkeys((*own_ends, *(params.stop_token_ids or ())))),
            min_tokens=min(params.min_tokens, max_tokens),
            # Every answer has the same prompt: the first one says what there is to say of it.
            num_prompt_logprobs=params.prompt_logprobs if index == 0 else None,
            grammar=grammar,
            priority=params.priority,
            timeout_s=params.timeout_s,
        )
        for index in range(params.n)
    )
    return Job(prompt, params, requests)


def pair_with_params(
    num_prompts: int, sampling_params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    """Return the parameters of each prompt: their own, or the same for all. Raises InvalidRequestError."""
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [sampling_params or SamplingParams()] * num_prompts
    if not isinstance(sampling_params, Sequence):
        kind = type(sampling_params).__name__
        raise _wrong_params(f": expected SamplingParams, or a list with one for each prompt, got {kind}")
    if len(sampling_params) != num_prompts:
        raise _wrong_params(f": {len(sampling_params)} of them for {num_prompts} prompts; give one, or one for each")
    for index, params in enumerate(sampling_params):
        if not isinstance(params, SamplingParams):
            raise _wrong_params(f"[{index}]: expected SamplingParams, got {type(params).__name__}")
    return list(sampling_params)


def _wrong_params(problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"sampling_params{problem}", "sampling_params")


def _check_token_ids(params: SamplingParams, model: Model) -> None:
    for name, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        unknown = next((token_id for token_id in token_ids or () if token_id >= model.spec.vocab_size), None)
        if unknown is not None:
            raise InvalidRequestError(
                f"{name}: {unknown} is not a token id; they go from 0 to {model.spec.vocab_size - 1}", name
            )
