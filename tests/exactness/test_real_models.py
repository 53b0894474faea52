"""The exactness rule on real models: the same tokens whatever the split, the company and the chunking.

The reference is each request alone, on one stage, its prompt in one piece. Every other way to run the same
requests must give the same tokens, greedy and seeded.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.support.pipelines import LocalPipeline, even_boundaries, scheduler_config

from butterfly.models import Model, open_model
from butterfly.specs import Request, SamplingSpec

NUM_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Why is the sky blue?",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Once upon a time, in a village at the foot of a mountain,",
    "1, 1, 2, 3, 5, 8, 13,",
    "Dear Sir or Madam,\n\nI am writing to",
    "Translate to German: good morning, how are you?",
    "The three laws of thermodynamics say that",
    "naïve café 你好 🎉",
    "SELECT name, COUNT(*) FROM users WHERE",
    "A",
    "\n\n",
    "Water boils at a lower temperature on a mountain because the air pressure there is lower. " * 8,
    "List five fruits:\n1. Apple\n2.",
    "import numpy as np\n\n# Compute the mean of each row\n",
    "Question: what is heavier, a kilogram of feathers or a kilogram of iron?\nAnswer:",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "In 1969, two people walked on the moon for the first time.",
    "My favourite recipe for bread needs flour, water, salt and",
    "<html><body><h1>Welcome</h1><p>",
)
WAYS = {  # stages, tokens per step
    "2 stages": (2, 512),
    "3 stages, small chunks": (3, 7),
    "5 stages, chunks of 50": (5, 50),
    "1 stage, chunks of 16": (1, 16),
}


@pytest.fixture(scope="module", params=["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.gemma)])
def model(request: pytest.FixtureRequest) -> Model:
    return open_model(request.param, max_context=512)


@pytest.fixture(scope="module")
def requests(model: Model) -> list[Request]:
    """Every prompt twice: greedy, and sampled in one of several ways."""
    ways = (
        SamplingSpec(seed=1, temperature=1.0),
        SamplingSpec(seed=2, temperature=0.8, top_p=0.95),
        SamplingSpec(seed=3, temperature=1.5, top_k=50),
        SamplingSpec(seed=1 << 63, temperature=0.7, min_p=0.05),
    )
    found = []
    for number, prompt in enumerate(PROMPTS):
        ids = tuple(model.tokenizer.encode(prompt))
        for name, sampling in (("greedy", SamplingSpec(temperature=0)), ("seeded", ways[number % len(ways)])):
            found.append(
                Request(request_id=f"{number} {name}", prompt_token_ids=ids, max_tokens=NUM_TOKENS, sampling=sampling)
            )
    return found


@pytest.fixture(scope="module")
def alone(model: Model, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    pipeline = LocalPipeline(model)
    tokens: dict[str, tuple[int, ...]] = {}
    for request in requests:
        tokens |= pipeline.generate([request])
    return tokens


@pytest.mark.parametrize("way", WAYS)
def test_tokens_do_not_depend_on_split_company_or_chunking(
    model: Model, requests: Sequence[Request], alone: dict[str, tuple[int, ...]], way: str
) -> None:
    num_stages, max_num_batched_tokens = WAYS[way]
    pipeline = LocalPipeline(model, even_boundaries(model.spec.num_layers, num_stages))
    config = scheduler_config(model, max_num_batched_tokens=max_num_batched_tokens)
    together = pipeline.generate(requests, config)
    different = [name for name in alone if together[name] != alone[name]]
    assert not different
    assert all(len(tokens) == NUM_TOKENS for tokens in together.values())


def test_seeds_and_prompts_matter(alone: dict[str, tuple[int, ...]]) -> None:
    """The comparison above would pass on constant output; this one would not."""
    assert len(set(alone.values())) > 0.9 * len(alone)
