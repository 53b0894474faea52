"""Reads the figures of a model from GGUF metadata."""

from __future__ import annotations

import math

import numpy as np

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.families import Family
from butterfly.models.gguf_file import GgufFile
from butterfly.models.hyperparameters import Hyperparameters, LayerKind
from butterfly.models.rope import Rope
from butterfly.models.weights import GGUF_EMBEDDING, GGUF_LM_HEAD

ROPE_FREQS = "rope_freqs.weight"  # Llama 3's scaling, one divisor per pair
DEFAULT_WINDOW_PATTERN_KEY = "attention.sliding_window_pattern"


def read_hyperparameters(file: GgufFile, family: Family) -> Hyperparameters:
    """Return the figures. Raises ModelFormatError for missing ones, UnsupportedModelError for MoE and
    rope scalings that are not run."""
    arch = file.text("general.architecture")

    def size(key: str, default: int | None = None) -> int:
        return file.integer(f"{arch}.{key}", default)

    if size("expert_count", 0):
        raise UnsupportedModelError(f"{file.path}: mixture-of-experts models are not supported")
    if GGUF_EMBEDDING not in file.tensors:
        raise ModelFormatError(f"{file.path}: tensor {GGUF_EMBEDDING} is missing")
    hidden, heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", hidden // max(heads, 1))
    if size("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{file.path}: keys and values of different sizes are not supported")
    num_layers = size("block_count")
    window = size("attention.sliding_window", 0) or None
    pattern, kinds = _window_pattern(file, f"{arch}.{DEFAULT_WINDOW_PATTERN_KEY}", num_layers)
    rope = _rope(file, arch, size("rope.dimension_count", head_dim))
    return Hyperparameters(
        where=str(file.path),
        name=file.text("general.name") or file.path.stem,
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=size("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=size("feed_forward_length"),
        vocab_size=file.tensors[GGUF_EMBEDDING].shape[0],
        max_context=size("context_length"),
        norm_eps=file.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        rope=rope,
        local_rope=_local_rope(file, arch, rope.dim),
        tied_embedding=GGUF_LM_HEAD not in file.tensors,
        interleaved_rope=family.gguf_interleaved_rope,
        window=window,
        window_pattern=pattern,
        layer_kinds=kinds,
        attention_scale=file.number(f"{arch}.attention.scale", 0.0) or None,
        extra={
            "attn_logit_softcapping": file.number(f"{arch}.attn_logit_softcapping", 0.0),
            "final_logit_softcapping": file.number(f"{arch}.final_logit_softcapping", 0.0),
        },
    )


def _rope(file: GgufFile, arch: str, dim: int) -> Rope:
    kind = file.text(f"{arch}.rope.scaling.type", "none")
    factor = file.number(f"{arch}.rope.scaling.factor", file.number(f"{arch}.rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{file.path}: rope scaling {kind!r} is not supported; supported: none, linear, llama3 factors"
        )
    if not math.isfinite(factor) or factor <= 0:
        raise ModelFormatError(f"{file.path}: rope scaling factor {factor}")
    divisors = (1.0,) * (dim // 2)
    if ROPE_FREQS in file.tensors:
        divisors = file.read_f32(ROPE_FREQS)
        if len(divisors) != dim // 2:
            raise ModelFormatError(f"{file.path}: {ROPE_FREQS} has {len(divisors)} values for {dim // 2} pairs")
    divisors = tuple(factor * divisor for divisor in divisors)
    trivial = all(divisor == 1.0 for divisor in divisors)
    return Rope(file.number(f"{arch}.rope.freq_base", 10_000.0), dim, () if trivial else divisors)


def _local_rope(file: GgufFile, arch: str, dim: int) -> Rope | None:
    theta = file.number(f"{arch}.rope.freq_base_swa", 0.0)
    return Rope(theta, dim) if theta else None


def _window_pattern(file: GgufFile, key: str, num_layers: int) -> tuple[int | None, tuple[LayerKind, ...]]:
    """The pattern is a period (every n-th layer sees everything) or one boolean per layer (sliding?)."""
    value = file.metadata.get(key)
    if value is None:
        return None, ()
    if isinstance(value, np.ndarray):
        return None, tuple("sliding_attention" if slides else "full_attention" for slides in value[:num_layers])
    return file.integer(key) or None, ()
