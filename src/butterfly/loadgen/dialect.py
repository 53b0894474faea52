"""What a server takes, and the request bodies that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from butterfly.loadgen.prompts import random_ids, random_text
from butterfly.loadgen.spec import LoadSpec


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server is asked."""

    prompts: Literal["token ids", "text"] = "token ids"
    ending: Literal["ignore_eos", "min_tokens", "free"] = "ignore_eos"  # what makes outputs as long as asked
    has_usage: bool = True  # takes stream_options
    tokens_per_word: float = 1.0  # of a text prompt
    overhead_tokens: float = 0.0  # around it: the chat template, a start token


def first_dialect(spec: LoadSpec) -> Dialect:
    """The one that measures best; most servers speak it."""
    return Dialect(prompts="text" if spec.chat else "token ids")


def relaxed(dialect: Dialect, refusal: str) -> tuple[Dialect, str] | None:
    """The next dialect to try and what is lost with it; None: the refusal has other reasons."""
    words = refusal.lower()
    if "context" in words:  # too long stays too long
        return None
    if dialect.ending == "ignore_eos" and "ignore_eos" in words:
        return replace(dialect, ending="min_tokens"), "the server does not take ignore_eos; min_tokens is sent instead"
    if dialect.ending == "min_tokens" and "min_tokens" in words:
        return replace(dialect, ending="free"), "the server does not take min_tokens; outputs may end early"
    if dialect.has_usage and ("stream_options" in words or "include_usage" in words):
        note = "the server does not take stream_options; tokens are counted as chunks and words"
        return replace(dialect, has_usage=False), note
    if dialect.prompts == "token ids" and any(word in words for word in ("prompt", "token", "string")):
        return replace(dialect, prompts="text"), f"prompts are words, as token ids were refused ({refusal})"
    return None


def num_words(spec: LoadSpec, dialect: Dialect) -> int:
    """How many words make an input of the wanted length."""
    return max(1, round((spec.num_input_tokens - dialect.overhead_tokens) / dialect.tokens_per_word))


def make_prompt(spec: LoadSpec, dialect: Dialect, seed: int, index: int) -> str | list[int]:
    if dialect.prompts == "token ids":
        return random_ids(seed, index, spec.num_input_tokens, spec.num_shared_tokens, spec.token_ids)
    num_shared = round(spec.num_shared_tokens / dialect.tokens_per_word)
    return random_text(seed, index, num_words(spec, dialect), num_shared)


def request_body(spec: LoadSpec, dialect: Dialect, prompt: str | list[int], num_output_tokens: int) -> bytes:
    """The JSON of one streamed request to `spec.model`."""
    body: dict[str, Any] = {"model": spec.model}
    if spec.chat:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    body |= {"max_tokens": num_output_tokens, "temperature": spec.temperature, "stream": True}
    if dialect.ending == "ignore_eos":
        body["ignore_eos"] = True
    elif dialect.ending == "min_tokens":
        body["min_tokens"] = num_output_tokens
    if dialect.has_usage:
        body["stream_options"] = {"include_usage": True}
    return msgspec.json.encode(body)
