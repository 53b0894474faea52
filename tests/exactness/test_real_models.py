"""The exactness rule on real models: the same tokens whatever the split, the company and the chunking.

The reference is one stage with all requests in a batch, prompts in one piece. Requests alone, and every other way to
run them, must give the same tokens, greedy and seeded. `--full` runs all prompts and tokens on Gemma too.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from butterfly.models import Model, open_model
from butterfly.specs import Request, SamplingSpec, WeightFormat
from butterfly.worker.resources import has_int8_instructions
from tests.support.pipelines import LocalPipeline, even_boundaries, scheduler_config

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
QUICK_SIZES = {"smollm2": (20, 32), "gemma3-270m": (5, 16)}  # prompts, output tokens
ALONE_EVERY = 8  # with `--full` every request runs alone too
WAYS = {  # stages, tokens per step
    "2 stages": (2, 512),
    "3 stages, small chunks": (3, 7),
    "5 stages, chunks of 50": (5, 50),
    "1 stage, chunks of 16": (1, 16),  # with `--full`: test_overlap has such chunks too
}


@pytest.fixture(scope="module", params=["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.gemma)])
def model(request: pytest.FixtureRequest) -> Model:
    return open_model(request.param, max_context=512)


@pytest.fixture(scope="module")
def is_full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="module")
def requests(model: Model, is_full: bool) -> list[Request]:
    """Every prompt twice: greedy, and sampled in one of several ways."""
    ways = (
        SamplingSpec(seed=1, temperature=1.0),
        SamplingSpec(seed=2, temperature=0.8, top_p=0.95),
        SamplingSpec(seed=3, temperature=1.5, top_k=50),
        SamplingSpec(seed=1 << 63, temperature=0.7, min_p=0.05),
    )
    num_prompts, num_tokens = (20, 64) if is_full else QUICK_SIZES[model.reference]
    found = []
    for number, prompt in enumerate(PROMPTS[:num_prompts]):
        ids = tuple(model.tokenizer.encode(prompt))
        for name, sampling in (("greedy", SamplingSpec(temperature=0)), ("seeded", ways[number % len(ways)])):
            request_id = f"{number} {name}"
            found.append(Request(request_id=request_id, prompt_token_ids=ids, max_tokens=num_tokens, sampling=sampling))
    return found


@pytest.fixture(scope="module")
def one_stage(model: Model) -> LocalPipeline:
    return LocalPipeline(model)


@pytest.fixture(scope="module")
def reference(model: Model, one_stage: LocalPipeline, requests: list[Request]) -> dict[str, tuple[int, ...]]:
    return one_stage.generate(requests, scheduler_config(model))


@pytest.mark.parametrize("way", WAYS)
def test_tokens_do_not_depend_on_split_or_chunking(
    model: Model, requests: Sequence[Request], reference: dict[str, tuple[int, ...]], way: str, is_full: bool
) -> None:
    if way.startswith("1 stage") and not is_full:
        pytest.skip("with --full")
    num_stages, max_num_batched_tokens = WAYS[way]
    pipeline = LocalPipeline(model, even_boundaries(model.spec.num_layers, num_stages))
    config = scheduler_config(model, max_num_batched_tokens=max_num_batched_tokens)
    tokens = pipeline.generate(requests, config)
    assert not [name for name in reference if tokens[name] != reference[name]]


def test_tokens_do_not_depend_on_company(
    one_stage: LocalPipeline, requests: list[Request], reference: dict[str, tuple[int, ...]], is_full: bool
) -> None:
    for request in requests[:: 1 if is_full else ALONE_EVERY]:
        assert one_stage.generate([request])[request.request_id] == reference[request.request_id]


def test_seeds_and_prompts_matter(requests: list[Request], reference: dict[str, tuple[int, ...]]) -> None:
    """The comparisons above would pass on constant output; this one would not."""
    assert all(len(tokens) == requests[0].max_tokens for tokens in reference.values())
    assert len(set(reference.values())) > 0.9 * len(reference)


@pytest.mark.skipif(not has_int8_instructions(), reason="this CPU has no VNNI instructions")
@pytest.mark.parametrize("weights", ["int8", "mixed"])
def test_other_weights_keep_the_rule(model: Model, requests: list[Request], weights: WeightFormat) -> None:
    """Steps have prompts and generated tokens side by side; with room for few, sequences are preempted and replayed."""
    if model.reference != "smollm2":
        pytest.skip("one model is enough")
    few = [msgspec.structs.replace(request, max_tokens=24) for request in requests[:4]]
    together = LocalPipeline(model, weights=weights).generate(few)
    split = LocalPipeline(model, even_boundaries(model.spec.num_layers, 3), weights=weights)
    config = scheduler_config(model, max_num_batched_tokens=7, num_sequences=6)
    config = msgspec.structs.replace(config, kv_capacity_tokens=192, prefix_reuse="prompt")
    assert split.generate(few, config) == together
