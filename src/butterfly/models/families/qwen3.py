"""Qwen3 (dense): an RMS norm on every q and k head before rope."""

from __future__ import annotations

import msgspec

from butterfly.models.families import qwen2
from butterfly.models.families.registry import (
    GGUF_LAYER_NAMES,
    HF_LAYER_NAMES,
    Family,
    register,
)
from butterfly.models.hyperparameters import Hyperparameters
from butterfly.specs import ModelSpec


def build(figures: Hyperparameters) -> ModelSpec:
    """Return Qwen2's decoder with q and k norms."""
    return msgspec.structs.replace(qwen2.build(figures), family="qwen3", qk_norm=True)


register(
    Family(
        name="qwen3",
        build=build,
        hf_model_types=("qwen3",),
        gguf_architectures=("qwen3",),
        hf_names={**HF_LAYER_NAMES, "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight"},
        gguf_names={**GGUF_LAYER_NAMES, "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight"},
        hf_defaults={"max_position_embeddings": 32768, "head_dim": 128},
        random_theta=1_000_000.0,
    )
)
