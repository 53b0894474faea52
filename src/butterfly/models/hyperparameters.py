"""The figures of a model in one vocabulary, whichever file format they came from.

Three readers fill it (`gguf_config`, `hf_config`, `random_model`), one builder per family reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.rope import Rope
from butterfly.specs import Activation, LayerSpec

LayerKind = Literal["full_attention", "sliding_attention"]

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Hugging Face names of the activations that Butterfly runs."""


@dataclass(frozen=True)
class Hyperparameters:
    """Everything a family's spec builder may ask for."""

    where: str  # the file, for error messages
    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_context: int
    norm_eps: float
    rope: Rope  # of layers that see everything
    tied_embedding: bool
    interleaved_rope: bool = False
    local_rope: Rope | None = None  # of sliding layers, where it differs
    window: int | None = None
    layer_kinds: tuple[LayerKind, ...] = ()  # empty: the family's own pattern
    window_pattern: int | None = None  # every n-th layer sees everything
    attention_scale: float | None = None  # None: head_dim ** -0.5
    activation: str | None = None  # Hugging Face name; None: the family's own
    extra: Mapping[str, object] = field(default_factory=dict)  # family oddities, by Hugging Face name

    def __post_init__(self) -> None:
        sizes = {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_context": self.max_context,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ModelFormatError(f"{self.where}: {name} is {size}")
        ropes = [self.rope] if self.local_rope is None else [self.rope, self.local_rope]
        for rope in ropes:
            if rope.dim % 2 or not 2 <= rope.dim <= self.head_dim or not 0 < rope.theta < inf:
                raise ModelFormatError(
                    f"{self.where}: cannot rotate {rope.dim} of {self.head_dim} dimensions with base {rope.theta}"
                )
        if not 0 < self.norm_eps < inf:
            raise ModelFormatError(f"{self.where}: the norm's epsilon is {self.norm_eps}")
        if self.num_heads % self.num_kv_heads:
            raise ModelFormatError(
                f"{self.where}: {self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly"
            )
        if self.layer_kinds and len(self.layer_kinds) != self.num_layers:
            raise ModelFormatError(f"{self.where}: {len(self.layer_kinds)} layer types for {self.num_layers} layers")

    def default_scale(self) -> float:
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def activation_or(self, default: Activation) -> Activation:
        """Return the activation. Raises UnsupportedModelError for one that is not run."""
        if self.activation is None:
            return default
        if self.activation not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"{self.where}: activation {self.activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[self.activation]

    def layers(self, default_kind: Callable[[int], LayerKind], *, local_rope_index: int = 0) -> tuple[LayerSpec, ...]:
        """Return the layers: their kinds as the file lists them, else as `default_kind` says."""
        kinds = self.layer_kinds or tuple(default_kind(index) for index in range(self.num_layers))
        if "sliding_attention" in kinds and (self.window is None or self.window < 1):
            raise ModelFormatError(f"{self.where}: sliding layers need a window, not {self.window}")
        return tuple(
            LayerSpec(rope=local_rope_index, window=self.window) if kind == "sliding_attention" else LayerSpec()
            for kind in kinds
        )
