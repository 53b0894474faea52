"""Qwen2 and Qwen2.5: biases on q, k and v; optionally a window on the upper layers."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from butterfly.models.families import llama
from butterfly.models.families.registry import Family, register
from butterfly.models.hyperparameters import Hyperparameters
from butterfly.specs import ModelSpec


def build(figures: Hyperparameters) -> ModelSpec:
    """Return a Llama-like decoder. Which layers slide is in `layer_kinds`: the window alone says nothing."""
    if "sliding_attention" not in figures.layer_kinds:
        figures = replace(figures, window=None)
    return msgspec.structs.replace(llama.build(figures), family="qwen2")


register(
    Family(
        name="qwen2",
        build=build,
        hf_model_types=("qwen2",),
        gguf_architectures=("qwen2",),
        optional_names=frozenset(),
        hf_defaults={"max_position_embeddings": 32768},
        random_theta=1_000_000.0,
    )
)
