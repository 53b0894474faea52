"""The sampler: a pure function of (logits, spec, position), with the distribution it promises."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from butterfly.engine.adjustments import Logits
from butterfly.engine.sampling import gumbel, sample, surviving_tokens
from butterfly.specs import SamplingContext, SamplingSpec

QUICK = settings(max_examples=60, deadline=None)
logits_of = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60).map(lambda v: np.array(v, np.float32))
specs = st.builds(
    SamplingSpec,
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0.05, 4),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)


@QUICK
@given(logits_of, specs, st.integers(0, 10**6))
def test_draws_a_surviving_token_and_always_the_same(logits: Logits, spec: SamplingSpec, position: int) -> None:
    token = sample(logits, spec, position)
    assert token in surviving_tokens(logits.astype(np.float64) / spec.temperature, spec)
    assert sample(logits.copy(), spec, position) == token


@QUICK
@given(logits_of, st.integers(1, 70), st.floats(0.01, 0.999), st.floats(0.001, 1))
def test_filters_keep_what_their_definitions_say(logits: Logits, top_k: int, top_p: float, min_p: float) -> None:
    scaled = logits.astype(np.float64)
    kept = set(surviving_tokens(scaled, SamplingSpec(top_k=top_k)).tolist())
    assert {t for t in range(len(scaled)) if (scaled > scaled[t]).sum() < top_k} == kept
    probabilities = np.exp(scaled - scaled.max()) / np.exp(scaled - scaled.max()).sum()
    order = np.argsort(-probabilities, kind="stable")
    kept_p = surviving_tokens(scaled, SamplingSpec(top_p=top_p))
    assert probabilities[kept_p].sum() >= top_p - 1e-9
    assert set(order[: len(kept_p)].tolist()) == set(kept_p.tolist())
    assert probabilities[order[: len(kept_p) - 1]].sum() < top_p + 1e-9
    kept_min = surviving_tokens(scaled, SamplingSpec(min_p=min_p))
    assert (probabilities[kept_min] >= min_p * probabilities.max() * (1 - 1e-9)).all()


@QUICK
@given(logits_of, specs, st.integers(0, 10**6))
def test_a_context_that_says_nothing_changes_nothing(logits: Logits, spec: SamplingSpec, position: int) -> None:
    context = SamplingContext(output_counts=((0, 3),), prompt_token_ids=(0,))
    assert sample(logits, spec, position, context) == sample(logits, spec, position)


@QUICK
@given(logits_of, specs, st.integers(0, 10**6), st.data())
def test_what_is_forbidden_is_never_sampled(
    logits: Logits, spec: SamplingSpec, position: int, data: st.DataObject
) -> None:
    """Whatever the bias says, and for greedy sampling too: the draw is that of a vocabulary without these tokens."""
    ids = st.integers(0, len(logits) - 1)
    allowed, banned = data.draw(st.sets(ids, min_size=1)), data.draw(st.sets(ids))
    bits = np.zeros(-(-len(logits) // 8) * 8, np.bool_)
    bits[list(allowed)] = True
    context = SamplingContext(
        mask=zlib.compress(np.packbits(bits, bitorder="little").tobytes()), banned_token_ids=tuple(banned)
    )
    biased = replace(spec, logit_bias=tuple((token_id, 50.0) for token_id in banned))
    possible = sorted(allowed - banned or allowed)
    assert sample(logits, biased, position, context) in possible
    greedy = sample(logits, SamplingSpec(temperature=0), position, context)
    assert greedy == possible[int(np.argmax(logits[possible]))]
    hopeless = np.full_like(logits, -1e30)
    hopeless[possible] = logits[possible]
    without_nucleus = replace(spec, top_p=1.0)  # whose sums are rounded by the number of their terms
    assert sample(logits, without_nucleus, position, context) == sample(hopeless, without_nucleus, position)


def test_temperature_zero_is_greedy_and_the_first_of_equals_wins() -> None:
    assert sample(np.array([1, 3, 3, 2], np.float32), SamplingSpec(temperature=0), 7) == 1


def test_extreme_values_still_give_a_token() -> None:
    logits = np.array([1, 3, 3, 2], np.float32)
    assert sample(logits, SamplingSpec(temperature=1e-310, top_p=0.9), 7) == 1
    broken = np.full(4, np.nan, np.float32)
    assert sample(logits, SamplingSpec(top_p=0.0), 7) == 1
    assert 0 <= sample(broken, SamplingSpec(top_p=0.5, top_k=2), 7) < 4


def test_frequencies_are_those_of_the_softmax() -> None:
    logits = np.array([0.0, 1.0, 2.0, -1.0], np.float32)
    expected = np.exp(logits) / np.exp(logits).sum()
    draws = np.bincount([sample(logits, SamplingSpec(seed=s), p) for s in range(40) for p in range(500)], minlength=4)
    deviation = np.sqrt(20_000 * expected * (1 - expected))
    assert (np.abs(draws - 20_000 * expected) < 5 * deviation).all()


def test_noise_is_standard_gumbel_and_differs_by_seed_position_and_token() -> None:
    noise = gumbel(5, 11, np.arange(200_000))
    assert abs(noise.mean() - np.euler_gamma) < 0.01
    assert abs(noise.var() - np.pi**2 / 6) < 0.03
    others = [gumbel(5, 12, np.arange(200_000)), gumbel(6, 11, np.arange(200_000)), np.roll(noise, 1)]
    assert all(abs(np.corrcoef(noise, other)[0, 1]) < 0.01 for other in others)
    assert (gumbel(5, 11, np.array([17, 3])) == noise[[17, 3]]).all()
