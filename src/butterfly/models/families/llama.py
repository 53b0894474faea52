"""Llama 2 and 3.x, TinyLlama, SmolLM2, and Mistral (the same decoder with an optional window)."""

from __future__ import annotations

from butterfly.models.families.registry import Family, register
from butterfly.models.hyperparameters import Hyperparameters
from butterfly.specs import ModelSpec


def build(figures: Hyperparameters) -> ModelSpec:
    """Return the decoder of a Llama-like model; a window, when given, holds in every layer."""
    windowed = figures.window is not None
    return ModelSpec(
        name=figures.name,
        family="llama",
        hidden_size=figures.hidden_size,
        num_heads=figures.num_heads,
        num_kv_heads=figures.num_kv_heads,
        head_dim=figures.head_dim,
        intermediate_size=figures.intermediate_size,
        vocab_size=figures.vocab_size,
        max_context=figures.max_context,
        norm_eps=figures.norm_eps,
        attention_scale=figures.default_scale(),
        layers=figures.layers(lambda _: "sliding_attention" if windowed else "full_attention"),
        ropes=(figures.rope.spec(figures.interleaved_rope),),
        activation=figures.activation_or("silu"),
        tied_embedding=figures.tied_embedding,
    )


register(
    Family(
        name="llama",
        build=build,
        hf_model_types=("llama", "mistral"),
        gguf_architectures=("llama",),
        gguf_interleaved_rope=True,
    )
)
