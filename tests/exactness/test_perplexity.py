"""Perplexity of real text, within 1 % of transformers in float32 on the same GGUF file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from butterfly.models import open_model
from butterfly.specs import WeightFormat
from butterfly.worker.resources import has_int8_instructions
from tests.support.pipelines import LocalPipeline

TEXT = Path(__file__).parents[2] / "LICENSE"
WINDOW = 512  # tokens that are seen together


def perplexity(token_ids: list[int], logits_of: Callable[[list[int]], torch.Tensor]) -> float:
    """exp of the mean negative log-likelihood of each token but the first of its window."""
    total, count = 0.0, 0
    for start in range(0, len(token_ids) - 1, WINDOW):
        window = token_ids[start : start + WINDOW]
        likelihood = torch.log_softmax(logits_of(window)[:-1].float(), dim=-1)
        total -= float(likelihood.gather(1, torch.tensor(window[1:])[:, None]).double().sum())
        count += len(window) - 1
    return math.exp(total / count)


@pytest.mark.parametrize("alias", ["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.gemma)])
def test_perplexity_is_that_of_transformers_in_float32(alias: str, pytestconfig: pytest.Config) -> None:
    if alias != "smollm2" and not pytestconfig.getoption("--full"):
        pytest.skip("minutes for transformers to read this file; run with --full")
    model = open_model(alias)
    file = Path(next(entry.file for entry in model.tensors.values()))
    token_ids = model.tokenizer.encode(TEXT.read_text())
    assert len(token_ids) > 2000
    if not pytestconfig.getoption("--full"):
        token_ids = token_ids[: 2 * WINDOW]
    formats: tuple[WeightFormat, ...] = ("int4", "int8") if has_int8_instructions() else ("int4",)
    ours = {weights: perplexity(token_ids, LocalPipeline(model, weights=weights).logits) for weights in formats}
    oracle = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        theirs = perplexity(token_ids, lambda window: oracle(torch.tensor([window])).logits[0])
    for weights, value in ours.items():
        print(f"{alias}, {weights}: perplexity {value:.4f}, transformers in float32 {theirs:.4f}, {value / theirs:.5f}")
        # 8-bit weights are rounded once more, row by row: about 1 % on a model as small as these
        assert abs(value / theirs - 1) < {"int4": 0.01, "int8": 0.02}[weights]
