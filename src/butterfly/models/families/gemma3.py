"""Gemma-3 text: five sliding layers to one that sees everything, two rope bases, norms on both sides
of attention and MLP, a scaled embedding that is also the head."""

from __future__ import annotations

from math import sqrt

import msgspec

from butterfly.errors import UnsupportedModelError
from butterfly.models.families import llama
from butterfly.models.families.registry import (
    GGUF_LAYER_NAMES,
    HF_LAYER_NAMES,
    Family,
    register,
)
from butterfly.models.hyperparameters import Hyperparameters, LayerKind
from butterfly.models.rope import Rope
from butterfly.specs import ModelSpec

PATTERN = 6
LOCAL_THETA = 10_000.0
LAYERS_OF_27B = 62  # its query scale is hidden / heads, not head_dim; GGUF files do not say so


def build(figures: Hyperparameters) -> ModelSpec:
    """Return the text decoder. Raises UnsupportedModelError for soft-capping or two-way attention."""
    for oddity in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if figures.extra.get(oddity):
            raise UnsupportedModelError(f"{figures.where}: {oddity} is not supported")
    pattern = figures.window_pattern or PATTERN

    def default_kind(index: int) -> LayerKind:
        return "full_attention" if (index + 1) % pattern == 0 else "sliding_attention"

    scale = figures.attention_scale
    if scale is None and figures.num_layers == LAYERS_OF_27B:
        scale = (figures.hidden_size / figures.num_heads) ** -0.5
    local_rope = figures.local_rope or Rope(LOCAL_THETA, figures.rope.dim)
    return msgspec.structs.replace(
        llama.build(figures),
        family="gemma3",
        attention_scale=figures.default_scale() if scale is None else scale,
        layers=figures.layers(default_kind, local_rope_index=1),
        ropes=(figures.rope.spec(figures.interleaved_rope), local_rope.spec(figures.interleaved_rope)),
        activation=figures.activation_or("gelu_tanh"),
        embedding_scale=sqrt(figures.hidden_size),
        qk_norm=True,
        post_norms=True,
    )


register(
    Family(
        name="gemma3",
        build=build,
        hf_model_types=("gemma3", "gemma3_text"),
        gguf_architectures=("gemma3",),
        hf_names={
            **HF_LAYER_NAMES,
            "q_norm": "self_attn.q_norm.weight",
            "k_norm": "self_attn.k_norm.weight",
            "post_attn_norm": "post_attention_layernorm.weight",
            "ffn_norm": "pre_feedforward_layernorm.weight",
            "post_ffn_norm": "post_feedforward_layernorm.weight",
        },
        gguf_names={
            **GGUF_LAYER_NAMES,
            "q_norm": "attn_q_norm.weight",
            "k_norm": "attn_k_norm.weight",
            "post_attn_norm": "post_attention_norm.weight",
            "post_ffn_norm": "post_ffw_norm.weight",
        },
        hf_defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "rope_theta": 1_000_000.0,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
        },
        hf_norm_add=1.0,
        ties_embedding=True,
        random_theta=1_000_000.0,
    )
)
