"""Natural logarithms of the model's own probabilities: log softmax in float64 over logits that nobody has changed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from butterfly.specs import TokenLogprobs


def token_logprobs(logits_V: npt.NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    """Return the logprob of a token and those of the `num_top` likeliest: likeliest first, the lower id of equals.

    A token that is among the likeliest has the same float in both places.
    """
    values = logits_V.astype(np.float64)
    highest = values.max()
    with np.errstate(invalid="ignore"):  # an infinite logit gives NaN here, as any overflow in the model does
        values -= highest + np.log(np.exp(values - highest).sum())
    top = tuple((int(i), float(values[i])) for i in likeliest(logits_V, num_top))
    return TokenLogprobs(token_id=token_id, logprob=float(values[token_id]), top=top)


def likeliest(logits_V: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return the ids of the largest logits, largest first, the lower id of equals, without sorting them all."""
    count = min(count, len(logits_V))
    if count == 0:
        return np.empty(0, np.int64)
    smallest = np.partition(logits_V, -count)[-count]
    candidates = np.flatnonzero(~(logits_V < smallest))  # ascending, with all ties; negated for NaN
    return candidates[np.argsort(-logits_V[candidates], kind="stable")][:count]
