"""Random prompts: the same for the same seed, different for every request, so that no prefix cache helps."""

from __future__ import annotations

import numpy as np

# One token each, with the space before it, in most vocabularies.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education foot boy age policy music market sense nation plan college "
    "interest death experience effect use class control field development role effort rate heart drug show leader "
    "light voice wife police mind price report decision son view relationship town road arm difference value building "
    "action season society tax director position player record paper space ground form event official matter center"
)
_WORDS = _TEXT.split()

_SHARED = 0  # the stream of random numbers that all prompts begin with; request i has stream i + 1


def random_ids(seed: int, index: int, num_tokens: int, num_shared: int, token_ids: tuple[int, int]) -> list[int]:
    """`num_tokens` ids from [first, last); the first `num_shared` of them are those of every request."""
    return _drawn(seed, _SHARED, num_shared, token_ids) + _drawn(seed, index + 1, num_tokens - num_shared, token_ids)


def random_text(seed: int, index: int, num_words: int, num_shared: int) -> str:
    """`num_words` words; the first `num_shared` of them are those of every request."""
    choices = random_ids(seed, index, num_words, min(num_shared, num_words), (0, len(_WORDS)))
    return " ".join(_WORDS[choice] for choice in choices)


def _drawn(seed: int, stream: int, count: int, span: tuple[int, int]) -> list[int]:
    drawn: list[int] = np.random.default_rng((seed, stream)).integers(*span, count).tolist()
    return drawn
