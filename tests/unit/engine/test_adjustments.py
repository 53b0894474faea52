"""Bias, penalties and what is forbidden, by hand-made examples."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from butterfly.engine.adjustments import adjusted_logits, allowed_tokens
from butterfly.engine.sampling import sample
from butterfly.errors import ProtocolError
from butterfly.specs import SamplingContext, SamplingSpec

LOGITS = np.array([2.0, -2.0, 4.0, 0.5, -1.0], np.float32)
SEEN = SamplingContext(output_counts=((1, 3), (2, 1)), prompt_token_ids=(0, 2))
GREEDY = SamplingSpec(temperature=0)


def mask_of(*token_ids: int, num_bytes: int = 1) -> bytes:
    bits = np.zeros(8 * num_bytes, np.bool_)
    bits[list(token_ids)] = True
    return zlib.compress(np.packbits(bits, bitorder="little").tobytes())


def test_nothing_asked_is_the_same_array() -> None:
    assert adjusted_logits(LOGITS, SamplingSpec(), SEEN) is LOGITS
    assert allowed_tokens(SEEN, 5) is None
    assert allowed_tokens(None, 5) is None


def test_bias_is_added() -> None:
    values = adjusted_logits(LOGITS, SamplingSpec(logit_bias=((1, 7.5), (4, -100.0))), None)
    assert values.tolist() == [2.0, 5.5, 4.0, 0.5, -101.0]
    assert LOGITS[1] == -2.0


def test_repetition_penalty_counts_prompt_and_output_once() -> None:
    values = adjusted_logits(LOGITS, SamplingSpec(repetition_penalty=2.0), SEEN)
    assert values.tolist() == [1.0, -4.0, 2.0, 0.5, -1.0]


def test_frequency_and_presence_count_the_output_only() -> None:
    values = adjusted_logits(LOGITS, SamplingSpec(frequency_penalty=0.5, presence_penalty=0.25), SEEN)
    assert values.tolist() == [2.0, -3.75, 3.25, 0.5, -1.0]


def test_bias_comes_first_and_subtraction_last() -> None:
    spec = SamplingSpec(logit_bias=((1, 4.0),), repetition_penalty=2.0, frequency_penalty=1.0)
    assert adjusted_logits(LOGITS, spec, SEEN).tolist() == [1.0, -2.0, 1.0, 0.5, -1.0]


def test_penalties_before_the_first_output_token() -> None:
    spec = SamplingSpec(repetition_penalty=2.0, frequency_penalty=1.0)
    context = SamplingContext(prompt_token_ids=(3,))
    assert adjusted_logits(LOGITS, spec, context).tolist() == [2.0, -2.0, 4.0, 0.25, -1.0]
    assert adjusted_logits(LOGITS, spec, SamplingContext()).tolist() == LOGITS.tolist()


def test_absurd_figures_still_give_a_token() -> None:
    spec = SamplingSpec(logit_bias=((0, 1.7e308), (0, 1.7e308)), frequency_penalty=-1.7e308, top_p=0.5)
    assert 0 <= sample(LOGITS, spec, 3, SEEN) < 5


def test_a_mask_and_bans_leave_what_both_allow() -> None:
    context = SamplingContext(mask=mask_of(0, 2, 4), banned_token_ids=(2, 3))
    allowed = allowed_tokens(context, 5)
    assert allowed is not None
    assert allowed.tolist() == [0, 4]
    assert sample(LOGITS, GREEDY, 0, context) == 0


@pytest.mark.parametrize("mask", [b"", mask_of(1, 2)], ids=["no mask", "mask"])
def test_bans_give_way_when_nothing_else_is_left(mask: bytes) -> None:
    context = SamplingContext(mask=mask, banned_token_ids=(0, 1, 2, 3, 4))
    assert sample(LOGITS, GREEDY, 0, context) == 2


def test_no_logit_brings_a_forbidden_token_back() -> None:
    broken = np.array([np.nan, np.inf, -np.inf, np.nan, -np.inf], np.float32)
    biased = SamplingSpec(temperature=0.7, logit_bias=((0, 1000.0),), top_k=3, top_p=0.9, min_p=0.1)
    for spec in (GREEDY, SamplingSpec(), biased):
        assert sample(broken, spec, 5, SamplingContext(mask=mask_of(2, 4))) in (2, 4)
        assert sample(LOGITS, spec, 5, SamplingContext(mask=mask_of(4))) == 4


def test_a_mask_may_end_early_and_its_last_bits_mean_nothing() -> None:
    early = allowed_tokens(SamplingContext(mask=mask_of(3, 7)), 20)
    assert early is not None
    assert early.tolist() == [3, 7]
    late = allowed_tokens(SamplingContext(mask=mask_of(3, 7)), 5)
    assert late is not None
    assert late.tolist() == [3]


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (b"garbage", "is not deflated data"),
        (mask_of(1)[:-1], "is not 1 deflated bytes"),
        (mask_of(1) + b"x", "is not 1 deflated bytes"),
        (mask_of(1, num_bytes=2), "is not 1 deflated bytes"),
        (mask_of(1, num_bytes=1 << 24), "is not 1 deflated bytes"),
        (mask_of(), "allows no token"),
        (mask_of(7), "allows no token"),
    ],
    ids=["garbage", "cut", "more behind", "too long", "a bomb", "empty", "empty for this vocabulary"],
)
def test_a_mask_that_cannot_be_used_is_refused(mask: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        sample(LOGITS, GREEDY, 0, SamplingContext(mask=mask))
