"""Every family, on tiny random models: the same logits and the same greedy tokens as transformers in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from butterfly.models import open_model
from butterfly.specs import Request, SamplingSpec
from tests.support.pipelines import LocalPipeline, even_boundaries

PROMPT = [3, 99, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71, 69, 39]
NUM_TOKENS = 24
TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


class Family(NamedTuple):
    config: Callable[..., Any]
    options: dict[str, Any]


FAMILIES = {
    "llama": Family(transformers.LlamaConfig, {}),
    "llama-tied-mha": Family(transformers.LlamaConfig, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama3-rope": Family(transformers.LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": Family(
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "mistral-window": Family(transformers.MistralConfig, {"sliding_window": 8}),
    "qwen2": Family(transformers.Qwen2Config, {}),
    "qwen3": Family(transformers.Qwen3Config, {"head_dim": 32}),
    "gemma3": Family(
        transformers.Gemma3TextConfig,
        {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny model of the family with random weights, saved as transformers saves it, and that model."""
    family = FAMILIES[request.param]
    torch.manual_seed(0)
    config = family.config(**{**TINY, **family.options})
    oracle = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if parameter.dim() == 1:  # norms and biases start as constants, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "embed" not in name:
                parameter.mul_(4)
    folder = tmp_path_factory.mktemp(request.param)
    oracle.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), eos_token="t2")
    tokenizer.save_pretrained(folder)
    return folder, oracle


def tiny_tokenizer() -> Any:
    import tokenizers

    vocabulary = {f"t{index}": index for index in range(TINY["vocab_size"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("chunk", [None, 5])
def test_logits_equal_those_of_transformers(saved: tuple[Path, Any], chunk: int | None) -> None:
    folder, oracle = saved
    pipeline = LocalPipeline(open_model(str(folder), dtype="float32"), dtype="float32")
    with torch.no_grad():
        expected = oracle(torch.tensor([PROMPT])).logits[0]
    actual = pipeline.logits(PROMPT, chunk)
    assert expected.std() > 0.1  # the weights say something
    assert (actual - expected).abs().max() < 1e-4


@pytest.mark.parametrize("num_stages", [1, 3])
def test_greedy_tokens_equal_those_of_transformers(saved: tuple[Path, Any], num_stages: int) -> None:
    folder, oracle = saved
    model = open_model(str(folder), dtype="float32")
    pipeline = LocalPipeline(model, even_boundaries(model.spec.num_layers, num_stages), dtype="float32")
    with torch.no_grad():
        known = torch.tensor([PROMPT])
        for _ in range(NUM_TOKENS):
            known = torch.cat([known, oracle(known).logits[:, -1:].argmax(-1)], dim=1)
    request = Request(
        request_id="a",
        prompt_token_ids=tuple(PROMPT),
        max_tokens=NUM_TOKENS,
        sampling=SamplingSpec(temperature=0),
    )
    assert pipeline.generate([request])["a"] == tuple(known[0, len(PROMPT) :].tolist())
