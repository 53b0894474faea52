"""What a request changes about the model's logits before a token is chosen: bias, penalties, what is forbidden.

A forbidden token is taken out of the choice, not made unlikely: no bias, temperature or broken logit brings it back.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from butterfly.errors import ProtocolError
from butterfly.specs import SamplingContext, SamplingSpec

Logits = npt.NDArray[np.float32] | npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.int64]

_LARGEST = 1e300  # what absurd but finite figures may make of a logit, so that dividing it by a temperature is finite


def adjusted_logits(logits_V: Logits, sampling: SamplingSpec, context: SamplingContext | None) -> Logits:
    """Return the logits after bias and penalties, in float64; the given array itself when there are none.

    In this order: bias is added; the repetition penalty divides positive and multiplies negative logits of every
    token that stands in prompt or output (Keskar et al., 2019); frequency penalty times occurrences, and the presence
    penalty once, are subtracted for every token of the output.
    """
    penalised = context if sampling.has_penalties else None
    if not sampling.logit_bias and penalised is None:
        return logits_V
    values = logits_V.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for token_id, bias in sampling.logit_bias:
            values[token_id] += bias
        if penalised is not None:
            _penalise(values, sampling, penalised)
    return np.clip(values, -_LARGEST, _LARGEST, out=values)


def _penalise(values_V: npt.NDArray[np.float64], sampling: SamplingSpec, context: SamplingContext) -> None:
    output_ids, counts = np.array(context.output_counts, np.int64).reshape(-1, 2).T
    if sampling.repetition_penalty != 1.0:
        seen = np.union1d(output_ids, np.array(context.prompt_token_ids, np.int64))
        values = values_V[seen]
        penalty = sampling.repetition_penalty
        values_V[seen] = np.where(values > 0, values / penalty, values * penalty)
    values_V[output_ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def allowed_tokens(context: SamplingContext | None, vocab_size: int) -> TokenIds | None:
    """Return the ids, ascending, that may be sampled, at least one; None: all of them.

    Banned tokens are allowed after all when the mask leaves no others.
    Raises ProtocolError for a mask that is malformed, too long or empty.
    """
    if context is None or not (context.mask or context.banned_token_ids):
        return None
    is_allowed_V = _unpacked(context.mask, vocab_size) if context.mask else np.ones(vocab_size, np.bool_)
    by_mask = np.flatnonzero(is_allowed_V)
    if not len(by_mask):
        raise ProtocolError("a token mask allows no token")
    is_allowed_V[list(context.banned_token_ids)] = False
    left = np.flatnonzero(is_allowed_V)
    return left if len(left) else by_mask


def _unpacked(mask: bytes, vocab_size: int) -> npt.NDArray[np.bool_]:
    """One truth value per token. A mask may end early: what it does not mention is forbidden."""
    most_bytes = -(-vocab_size // 8)
    inflater = zlib.decompressobj()
    try:
        bits = inflater.decompress(mask, most_bytes + 1)  # never more, whatever a few bytes may inflate to
    except zlib.error as error:
        raise ProtocolError(f"a token mask is not deflated data: {error}") from error
    if len(bits) > most_bytes or not inflater.eof or inflater.unused_data:
        raise ProtocolError(f"a token mask is not {most_bytes} deflated bytes, for a vocabulary of {vocab_size}")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=vocab_size, bitorder="little").view(np.bool_)
