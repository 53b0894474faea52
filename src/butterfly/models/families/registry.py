"""What a model family is, and the table of those that Butterfly knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from butterfly.errors import UnsupportedModelError
from butterfly.models.hyperparameters import Hyperparameters
from butterfly.specs import ModelSpec

QKV_BIASES = frozenset({"q_bias", "k_bias", "v_bias"})

HF_LAYER_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
"""Canonical name within a layer -> name within `model.layers.N.`; most families add to it."""

GGUF_LAYER_NAMES: Mapping[str, str] = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
"""Canonical name within a layer -> name within `blk.N.`."""


@dataclass(frozen=True)
class Family:
    """One spec builder and one weight-name map (for both file formats), with small flags."""

    name: str
    build: Callable[[Hyperparameters], ModelSpec]
    hf_model_types: tuple[str, ...]
    gguf_architectures: tuple[str, ...]
    hf_names: Mapping[str, str] = field(default_factory=lambda: HF_LAYER_NAMES)
    gguf_names: Mapping[str, str] = field(default_factory=lambda: GGUF_LAYER_NAMES)
    optional_names: frozenset[str] = QKV_BIASES  # canonical names a file may leave out
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)  # what config.json may leave out
    hf_norm_add: float = 0.0  # norm weights are stored minus this
    gguf_interleaved_rope: bool = False  # the converter permuted q and k rows for pairs (2i, 2i+1)
    ties_embedding: bool = False  # of random models
    random_theta: float = 10_000.0


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a family to the table. A name, model type or architecture can be taken only once."""
    for other in _FAMILIES.values():
        taken = {*other.hf_model_types} & {*family.hf_model_types}
        taken |= {*other.gguf_architectures} & {*family.gguf_architectures}
        if taken or other.name == family.name:
            raise ValueError(f"families {other.name} and {family.name} both claim {taken or other.name}")
    _FAMILIES[family.name] = family
    return family


def families() -> Mapping[str, Family]:
    """Return the table, by family name."""
    return dict(sorted(_FAMILIES.items()))


def family_for_hf(model_type: str, where: str) -> Family:
    """Return the family of a config.json's `model_type`. Raises UnsupportedModelError naming it."""
    known = {name: family for family in _FAMILIES.values() for name in family.hf_model_types}
    return _find(known, model_type, f"{where}: model type")


def family_for_gguf(architecture: str, where: str) -> Family:
    """Return the family of a GGUF `general.architecture`. Raises UnsupportedModelError naming it."""
    known = {name: family for family in _FAMILIES.values() for name in family.gguf_architectures}
    return _find(known, architecture, f"{where}: architecture")


def _find(known: Mapping[str, Family], name: str, what: str) -> Family:
    if name not in known:
        raise UnsupportedModelError(f"{what} {name!r} is not supported; supported: {', '.join(sorted(known))}")
    return known[name]
