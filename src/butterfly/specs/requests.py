"""Generation requests and their outputs: token ids in, token ids out."""

from __future__ import annotations

from typing import Literal

from butterfly.specs.base import Spec

FinishReason = Literal["stop", "length", "abort", "error"]

PrefixReuse = Literal["all", "prompt", "off"]
"""Whose KV cache a request may start from: any earlier token's, prompt tokens' only, nobody's.

`prompt` is for engines that compute prompt and generated tokens with different kernels: there, what was generated
has other bits than the same tokens read as a prompt.
"""

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


class GrammarSpec(Spec, frozen=True):
    """What every output must match. Compiled where the tokenizer is; stages only ever see token masks."""

    kind: GrammarKind
    text: str = ""  # the schema (JSON), the pattern, a JSON list of strings, the grammar; json_object: empty
    param: str = "response_format"  # the request field that asked for it, for error messages


class SamplingSpec(Spec, frozen=True):
    """x = argmax(logits / temperature + Gumbel(seed, position)) after top-k, top-p and min-p.

    The logits are first changed by bias, penalties and what `SamplingContext` forbids. Travels to the last
    stage with every step that samples. temperature 0 is greedy.
    """

    seed: int = 0  # 64 bits, unsigned; the coordinator draws one when the client gives none
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0  # subtracted once from every token of the output so far
    frequency_penalty: float = 0.0  # subtracted for every occurrence in the output so far
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of prompt and output tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    num_logprobs: int | None = None  # None: none; k: the sampled token's and those of the k likeliest

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1.0


class Request(Spec, frozen=True):
    """An accepted generation request as the scheduler sees it: token ids in, token ids out."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int  # output tokens at most, >= 1
    sampling: SamplingSpec = SamplingSpec()
    stop_token_ids: tuple[int, ...] = ()  # the output ends with `stop` when one is sampled
    min_tokens: int = 0  # no stop token is sampled before
    num_prompt_logprobs: int | None = None  # None: none; k: every prompt token's but the first, and the k likeliest
    grammar: GrammarSpec | None = None
    tenant: str = ""  # whose request: tenants share the cluster evenly, however many requests each has
    priority: int = 0  # smaller numbers first, over all tenants; preempted last
    timeout_s: float | None = None  # ends with an error when it has not ended so long after it arrived


class TokenLogprobs(Spec, frozen=True):
    """Natural logarithms of the model's own probabilities: before bias, penalties, masks and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob) of the likeliest, likeliest first


class RequestOutput(Spec, frozen=True):
    """What one update added to a request. The last one of a request has a finish reason."""

    request_id: str
    token_ids: tuple[int, ...]  # new tokens, in order; a stop token is included
    num_prompt_tokens: int
    num_output_tokens: int  # so far
    finish_reason: FinishReason | None = None
    error: str = ""  # one line, with finish_reason "error"
    timed_out: bool = False  # with finish_reason "error": its `timeout_s` has passed
    num_cached_tokens: int = 0  # prompt tokens that were found in the KV cache instead of computed
    logprobs: tuple[TokenLogprobs, ...] = ()  # of token_ids, when the request asks for them
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of prompt tokens 1, 2, ...: all of them, with the first output
