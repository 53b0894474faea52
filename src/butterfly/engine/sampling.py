"""Sampling as a function of (seed, position): x = argmax(logits / temperature + Gumbel(seed, position, token)).

The Gumbel-max trick draws from the softmax without a generator that a batch would share: the same request draws
the same token alone, in a batch, after preemption and on another plan. The noise of a token is a hash of
(seed, position, token id), so it is only computed for tokens that survive top-k, top-p and min-p. What changes the
logits and what is forbidden comes first: see `adjustments`.
The hash is the finaliser of splitmix64 (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from butterfly.engine.adjustments import Logits, TokenIds, adjusted_logits, allowed_tokens
from butterfly.specs import SamplingContext, SamplingSpec

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_COLD = 1e-5  # below this temperature everything but the likeliest token is out of reach; dividing would overflow


def sample(logits_V: Logits, sampling: SamplingSpec, position: int, context: SamplingContext | None = None) -> int:
    """Return the token id for `position` of a sequence; the lowest id wins a tie.

    Raises ProtocolError for a token mask in `context` that cannot be used.
    """
    values = adjusted_logits(logits_V, sampling, context)
    allowed = allowed_tokens(context, len(logits_V))
    if allowed is not None:
        values = values[allowed]
    if sampling.temperature < _COLD:
        choice = int(np.argmax(values))
        return choice if allowed is None else int(allowed[choice])
    scaled = values.astype(np.float64) / sampling.temperature
    survivors = surviving_tokens(scaled, sampling)
    token_ids = survivors if allowed is None else allowed[survivors]
    noise = gumbel(sampling.seed, position, token_ids)
    return int(token_ids[np.argmax(scaled[survivors] + noise)])


def surviving_tokens(scaled_V: npt.NDArray[np.float64], sampling: SamplingSpec) -> TokenIds:
    """Return the ids, ascending, that top-k, then top-p, then min-p leave; never empty.

    top-k keeps ties with the k-th; top-p keeps the smallest set of the likeliest tokens, renormalised after
    top-k, that reaches p; min-p keeps tokens at least min_p times as likely as the likeliest.
    The comparisons are negated so that NaN (an overflow in the model) survives: a bad token, not a dead worker.
    """
    token_ids = np.arange(len(scaled_V))
    if 0 < sampling.top_k < len(token_ids):
        kth = np.partition(scaled_V, -sampling.top_k)[-sampling.top_k]
        token_ids = np.nonzero(~(scaled_V < kth))[0]
    if sampling.top_p < 1.0:
        token_ids = _nucleus(scaled_V, token_ids, sampling.top_p)
    if sampling.min_p > 0.0:
        values = scaled_V[token_ids]
        token_ids = token_ids[~(values < values.max() + np.log(sampling.min_p))]
    return token_ids


def _nucleus(scaled_V: npt.NDArray[np.float64], token_ids: TokenIds, top_p: float) -> TokenIds:
    values = scaled_V[token_ids]
    probabilities = np.exp(values - values.max())
    probabilities /= probabilities.sum()
    # Tokens below (1-p)/V together weigh less than 1-p, so none is in the nucleus: sort only the others.
    candidates = np.nonzero(~(probabilities < (1 - top_p) / len(probabilities)))[0]
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    mass_before = np.cumsum(probabilities[order]) - probabilities[order]
    is_kept = ~(mass_before >= top_p)
    is_kept[0] = True  # the likeliest, also for p = 0
    return np.sort(token_ids[order[is_kept]])


def gumbel(seed: int, position: int, token_ids: TokenIds) -> npt.NDArray[np.float64]:
    """Return independent standard Gumbel noise, one value per token id."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        key = _mix(np.uint64(seed & _MASK) + _GOLDEN * np.uint64(position + 1))
        bits = _mix(key + _GOLDEN * (token_ids.astype(np.uint64) + np.uint64(1)))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # strictly inside (0, 1)
    return -np.log(-np.log(uniform))


def _mix(x: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    x = np.asarray(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
