from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.engine.logprobs import likeliest, token_logprobs

# Few distinct values, so that there are ties, as there are among bfloat16 logits.
coarse_logits = st.lists(st.integers(-8, 8), min_size=1, max_size=80).map(lambda v: np.array(v, np.float32) / 2)


@settings(max_examples=100, deadline=None)
@given(coarse_logits, st.integers(0, 90))
def test_the_likeliest_are_those_of_a_stable_sort(logits: np.ndarray, count: int) -> None:
    assert likeliest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


@settings(max_examples=60, deadline=None)
@given(coarse_logits, st.integers(0, 90), st.data())
def test_they_are_the_log_softmax(logits: np.ndarray, count: int, data: st.DataObject) -> None:
    token_id = data.draw(st.integers(0, len(logits) - 1))
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1)
    found = token_logprobs(logits, token_id, count)
    assert found.token_id == token_id
    assert found.logprob == pytest.approx(expected[token_id].item(), abs=1e-12)
    assert [i for i, _ in found.top] == likeliest(logits, count).tolist()
    assert [logprob for _, logprob in found.top] == pytest.approx([expected[i].item() for i, _ in found.top], abs=1e-12)
    assert dict(found.top).get(token_id, found.logprob) == found.logprob


def test_large_vocabularies_keep_their_precision() -> None:
    logits = np.random.default_rng(0).normal(0, 4, 262_144).astype(np.float32)
    found = token_logprobs(logits, 17, len(logits))
    assert len(found.top) == len(logits)
    assert sum(np.exp([logprob for _, logprob in found.top])) == pytest.approx(1, abs=1e-9)
    assert dict(found.top)[17] == found.logprob


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_logits_give_broken_logprobs_and_no_error(value: float) -> None:
    logits = np.array([1.0, value, 2.0, 0.0], np.float32)
    found = token_logprobs(logits, 0, 3)
    assert len(found.top) == 3
    assert (found.logprob == found.logprob) == (value == -np.inf)
