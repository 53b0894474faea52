"""From a checked body to the engine requests of a call: tokens, limits, sampling, seeds."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from butterfly.api.bodies import DEFAULT_COMPLETION_TOKENS, AnyBody, ChatBody, CompletionBody
from butterfly.api.grammars import grammar_of
from butterfly.api.interfaces import ServedModel
from butterfly.api.problems import UnknownModelError
from butterfly.api.prompts import chat_prompt, check_token_ids, text_prompt, token_prompt
from butterfly.api.token_texts import Echo, echo_of
from butterfly.api.tool_bodies import ToolUse, tool_use_of
from butterfly.errors import ContextLengthError, InvalidRequestError
from butterfly.specs import GrammarSpec, Request, SamplingSpec

_SEED_MASK = 2**64 - 1
_SEED_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: no two choices of a call share a seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a job needs to know of its HTTP call beyond the body."""

    answer_id: str
    tenant: str = ""
    default_timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The engine requests of one HTTP call; the position of a request is the index of its choice."""

    requests: tuple[Request, ...]
    num_prompt_tokens: int  # each prompt once, however many choices it has
    num_choices_per_prompt: int = 1
    stops: tuple[str, ...] = ()
    keeps_stop: bool = False  # what ended the text stays in it
    skips_special_tokens: bool = True
    silent_token_ids: tuple[int, ...] = ()  # generated, but no text
    is_prompt_only: bool = False  # the one token that the engine must generate is dropped
    echoes: tuple[Echo, ...] = ()  # one per prompt, or none
    tool_use: ToolUse | None = None

    @property
    def has_logprobs(self) -> bool:
        return self.requests[0].sampling.num_logprobs is not None

    def echo(self, index: int) -> Echo | None:
        """Return what is shown before choice number `index`."""
        return self.echoes[index // self.num_choices_per_prompt] if self.echoes else None


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


async def chat_job(model: ServedModel, body: ChatBody, call: Call) -> Job:
    """Return one request per choice. Raises InvalidRequestError or ContextLengthError."""
    check_model(model, body.model)
    template = model.chat_template
    if template is None:
        raise InvalidRequestError(f"'{model.id}' has no chat template; use /v1/completions", "messages")
    tool_use = tool_use_of(body.tools or [], body.tool_choice, template.source, parallel=body.parallel_tool_calls)
    grammar = grammar_of(body)
    if tool_use is not None and grammar is not None:
        raise InvalidRequestError(
            f"{grammar.param} cannot be combined with tools; leave one out, or set tool_choice to 'none'",
            grammar.param,
        )
    prompt = await chat_prompt(model, template, body, tool_use.for_template if tool_use else [])
    limits = _max_tokens(model, [prompt], body.output_limit, None, "messages")
    common = _common_request(model, body, call, tool_use.grammar if tool_use else grammar)
    return Job(
        requests=_requests(common, [prompt], limits, body.num_choices),
        num_prompt_tokens=len(prompt),
        num_choices_per_prompt=body.num_choices,
        stops=tuple(body.stop or ()),
        keeps_stop=bool(body.include_stop_str_in_output),
        # What marks a call is a special token in some vocabularies.
        skips_special_tokens=body.skip_special_tokens is not False and tool_use is None,
        silent_token_ids=_silent_token_ids(common, body, model.eos_token_ids if tool_use else ()),
        tool_use=tool_use,
    )


async def completion_job(model: ServedModel, body: CompletionBody, call: Call) -> Job:
    """Return one request per prompt and choice, the choices of a prompt side by side."""
    check_model(model, body.model)
    prompts = [await _prompt_tokens(model, body, prompt) for prompt in body.prompt]
    skips_special_tokens = body.skip_special_tokens is not False
    echoes: list[Echo] = []
    if body.echo:
        texts = [prompt if isinstance(prompt, str) else None for prompt in body.prompt]
        echoes = [
            echo_of(model.tokenizer, prompt, text, skip_special_tokens=skips_special_tokens)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    is_prompt_only = body.max_tokens == 0
    asked = 1 if is_prompt_only else body.max_tokens  # the engine knows no request without output
    limits = _max_tokens(model, prompts, asked, DEFAULT_COMPLETION_TOKENS, "prompt")
    common = _common_request(model, body, call, grammar_of(body))
    if body.echo:
        common = msgspec.structs.replace(common, num_prompt_logprobs=body.logprobs)
    return Job(
        requests=_requests(common, prompts, limits, body.num_choices),
        num_prompt_tokens=sum(len(prompt) for prompt in prompts),
        num_choices_per_prompt=body.num_choices,
        stops=tuple(body.stop or ()),
        keeps_stop=bool(body.include_stop_str_in_output),
        skips_special_tokens=skips_special_tokens,
        silent_token_ids=_silent_token_ids(common, body, ()),
        is_prompt_only=is_prompt_only,
        echoes=tuple(echoes),
    )


async def _prompt_tokens(model: ServedModel, body: CompletionBody, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return await text_prompt(model, prompt, add_special_tokens=body.add_special_tokens is not False)
    return token_prompt(model, prompt)


def _common_request(model: ServedModel, body: AnyBody, call: Call, grammar: GrammarSpec | None) -> Request:
    """Return what the requests of a call share: without prompt and limit, its id that of the answer."""
    own_stops = tuple(body.stop_token_ids or ())
    check_token_ids(model, own_stops, "stop_token_ids")
    # Where a grammar is complete only an end token is left: then they end the output in any case.
    ignores_eos = bool(body.ignore_eos) and grammar is None
    timeouts = [timeout for timeout in (body.timeout, call.default_timeout_s) if timeout is not None]
    return Request(
        request_id=call.answer_id,
        prompt_token_ids=(),
        max_tokens=1,
        sampling=_sampling(model, body),
        stop_token_ids=tuple(dict.fromkeys((*(() if ignores_eos else model.eos_token_ids), *own_stops))),
        min_tokens=body.min_tokens or 0,
        grammar=grammar,
        tenant=call.tenant,
        priority=body.priority or 0,
        timeout_s=min(timeouts, default=None),
    )


def _requests(
    common: Request, prompts: Sequence[list[int]], limits: list[int], num_choices: int
) -> tuple[Request, ...]:
    """Return `common` once for each choice of each prompt, with ids, seeds and limits of their own."""
    if common.min_tokens > min(limits):
        raise InvalidRequestError(
            f"min_tokens: {common.min_tokens} are more than the {min(limits)} tokens that the output may have",
            "min_tokens",
        )
    samplings = [
        msgspec.structs.replace(common.sampling, seed=choice_seed(common.sampling.seed, choice))
        for choice in range(num_choices)
    ]
    return tuple(
        msgspec.structs.replace(
            common,
            request_id=f"{common.request_id}-{index * num_choices + choice}",
            prompt_token_ids=tuple(prompt),
            max_tokens=limit,
            sampling=sampling,
        )
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
        for choice, sampling in enumerate(samplings)
    )


def _silent_token_ids(common: Request, body: AnyBody, hidden: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tokens without text: what ended the output, unless it shall show, and `hidden` in any case."""
    ending = () if body.include_stop_str_in_output else common.stop_token_ids
    return (*ending, *hidden)


def _sampling(model: ServedModel, body: AnyBody) -> SamplingSpec:
    """Return the sampling of choice 0."""
    biases = body.logit_bias or {}
    check_token_ids(model, biases, "logit_bias")
    # OpenAI allows top_p 0: the nucleus is then the most likely token alone.
    only_best = body.top_p == 0
    return SamplingSpec(
        seed=secrets.randbits(64) if body.seed is None else choice_seed(body.seed, 0),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=1 if only_best else max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None or only_best else body.top_p,
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=tuple(biases.items()),
        num_logprobs=body.num_logprobs,
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
