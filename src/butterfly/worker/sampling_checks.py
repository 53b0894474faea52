"""What a sequence asks of the stage with the head must be something that a head can do."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import inf, isfinite, ulp

from butterfly.specs import SamplingContext, SamplingSpec, SequenceStep

MOST_TOP_LOGPROBS = 100  # likeliest tokens at one position: what the answer may be made to carry

_RANGES = (
    ("temperature", 0.0, inf),
    ("top_k", 0, inf),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -inf, inf),
    ("frequency_penalty", -inf, inf),
    ("repetition_penalty", ulp(0.0), inf),  # the least positive number: it divides
)


def problem_of_sampling(sequence: SequenceStep, vocab_size: int, max_context: int) -> str:
    """Return what is wrong with sampling or scoring here, to follow the words "where sequence N"; else ""."""
    problem = _problem_of_scoring(sequence, vocab_size) if sequence.scored_token_ids else ""
    if not problem and sequence.sampling is not None:
        problem = _problem_of_figures(sequence.sampling, vocab_size)
    if not problem and sequence.context is not None:
        if sequence.sampling is None:
            return "has a sampling context but samples nothing"
        problem = _problem_of_context(sequence.context, vocab_size, max_context)
    return problem


def _problem_of_scoring(sequence: SequenceStep, vocab_size: int) -> str:
    if len(sequence.scored_token_ids) > sequence.num_tokens:
        return f"scores {len(sequence.scored_token_ids)} tokens after {sequence.num_tokens} positions"
    if _any_outside(sequence.scored_token_ids, vocab_size):
        return f"scores token ids outside the vocabulary of {vocab_size}"
    return _problem_of_top(sequence.num_scored_top)


def _problem_of_figures(sampling: SamplingSpec, vocab_size: int) -> str:
    for name, least, most in _RANGES:
        value = getattr(sampling, name)
        if not (isfinite(value) and least <= value <= most):
            return f"samples with {name} {value}"
    if _any_outside([token_id for token_id, _ in sampling.logit_bias], vocab_size):
        return f"has a logit_bias for token ids outside the vocabulary of {vocab_size}"
    if not all(isfinite(bias) for _, bias in sampling.logit_bias):
        return "has a logit_bias that is not a finite number"
    return _problem_of_top(sampling.num_logprobs or 0)


def _problem_of_context(context: SamplingContext, vocab_size: int, max_context: int) -> str:
    output_ids = [token_id for token_id, _ in context.output_counts]
    for name, token_ids in (
        ("output_counts", output_ids),
        ("prompt_token_ids", context.prompt_token_ids),
        ("banned_token_ids", context.banned_token_ids),
    ):
        if _any_outside(token_ids, vocab_size):
            return f"has {name} outside the vocabulary of {vocab_size}"
    if not all(0 < count <= max_context for _, count in context.output_counts):
        return f"has output_counts that are not from 1 to {max_context}"
    return _problem_of_mask(context.mask, vocab_size) if context.mask else ""


def _problem_of_mask(mask: bytes, vocab_size: int) -> str:
    most_bytes = -(-vocab_size // 8)
    inflater = zlib.decompressobj()
    try:
        num_bytes = len(inflater.decompress(mask, most_bytes + 1))
    except zlib.error as error:
        return f"has a token mask that does not inflate: {error}"
    if num_bytes > most_bytes or not inflater.eof or inflater.unused_data:
        return f"has a token mask that does not inflate to at most {most_bytes} bytes"
    return ""


def _problem_of_top(count: int) -> str:
    return "" if 0 <= count <= MOST_TOP_LOGPROBS else f"wants {count} top logprobs, of {MOST_TOP_LOGPROBS} at most"


def _any_outside(token_ids: Sequence[int], vocab_size: int) -> bool:
    return bool(token_ids) and (min(token_ids) < 0 or max(token_ids) >= vocab_size)
