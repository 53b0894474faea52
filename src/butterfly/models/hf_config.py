"""Reads the figures of a model from a Hugging Face `config.json`, of transformers 4 or 5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.models.families import Family, family_for_hf
from butterfly.models.hyperparameters import Hyperparameters, LayerKind
from butterfly.models.rope import Rope, scaling_divisors

_LAYER_KINDS: Mapping[str, LayerKind] = {
    "full_attention": "full_attention",
    "sliding_attention": "sliding_attention",
}
_EXTRA = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")


class _Config:
    """config.json with the family's defaults behind it and checked types."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.defaults = defaults
        self.where = where

    def get(self, key: str, fallback: Any = None) -> Any:
        return self.values.get(key, self.defaults.get(key, fallback))

    def integer(self, key: str, fallback: int | None = None) -> int:
        value: int = self._checked(key, fallback, int, "an integer")
        return value

    def number(self, key: str, fallback: float | None = None) -> float:
        value: float = self._checked(key, fallback, float, "a number")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """Return an object, empty when absent or null."""
        value: dict[str, Any] = self._checked(key, {}, dict[str, Any], "an object")
        return value

    def _checked(self, key: str, fallback: Any, kind: Any, what: str) -> Any:
        value = self.get(key)
        value = fallback if value is None else value
        if value is None:
            raise ModelFormatError(f"{self.where}: {key} is missing")
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            raise ModelFormatError(f"{self.where}: {key} is {value!r}, not {what}") from None


def find_family(config: Mapping[str, Any], folder: Path) -> Family:
    """Return the family that `config.json` names.

    Raises UnsupportedModelError for one that is not run, or for quantised weights.
    """
    where = str(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFormatError(f"{where}: model_type is missing")
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise UnsupportedModelError(f"{where}: weights quantised with {method!r} are not supported; use a GGUF file")
    return family_for_hf(model_type, where)


def read_hyperparameters(config: Mapping[str, Any], family: Family, folder: Path, vocab_size: int) -> Hyperparameters:
    """Return the figures that `config.json` states.

    `vocab_size` is what the embedding has. Raises ModelFormatError for missing or inconsistent
    fields, UnsupportedModelError for a rope scaling or layer type that is not run.
    """
    where = str(folder / "config.json")
    values = config.get("text_config", config)
    if not isinstance(values, Mapping):
        raise ModelFormatError(f"{where}: text_config is not an object")
    return _figures(_Config(values, family.hf_defaults, where), folder, vocab_size)


def _figures(config: _Config, folder: Path, vocab_size: int) -> Hyperparameters:
    if config.get("vocab_size", vocab_size) != vocab_size:
        raise ModelFormatError(
            f"{config.where}: vocab_size is {config.get('vocab_size')}, the embedding has {vocab_size} rows"
        )
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", hidden // max(heads, 1))
    num_layers, max_context = config.integer("num_hidden_layers"), config.integer("max_position_embeddings", 2048)
    rope, local_rope = _ropes(config, int(head_dim * config.number("partial_rotary_factor", 1.0)), max_context)
    scale = config.get("query_pre_attn_scalar")
    window = _window(config)
    return Hyperparameters(
        where=config.where,
        name=folder.name,
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size"),
        vocab_size=vocab_size,
        max_context=max_context,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=rope,
        local_rope=local_rope,
        tied_embedding=bool(config.get("tie_word_embeddings", False)),
        window=window,
        window_pattern=_window_pattern(config),
        layer_kinds=_layer_kinds(config, num_layers),
        attention_scale=None if scale is None else config.number("query_pre_attn_scalar") ** -0.5,
        activation=config.get("hidden_act", config.get("hidden_activation")),
        extra={key: config.get(key) for key in _EXTRA},
    )


def _window(config: _Config) -> int | None:
    if config.get("use_sliding_window", True) is False:
        return None
    if config.values.get("model_type") == "mistral" and "sliding_window" not in config.values:
        return 4096  # MistralConfig's default; files that mean "none" say null
    return config.get("sliding_window") and config.integer("sliding_window")


def _window_pattern(config: _Config) -> int | None:
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        if config.get(key):
            return config.integer(key)
    return None


def _layer_kinds(config: _Config, num_layers: int) -> tuple[LayerKind, ...]:
    """What `layer_types` lists, or the older `use_sliding_window` + `max_window_layers`."""
    listed = config.get("layer_types")
    if listed is None:
        if not config.get("use_sliding_window"):
            return ()
        first_sliding = config.integer("max_window_layers", 28)
        return tuple("sliding_attention" if index >= first_sliding else "full_attention" for index in range(num_layers))
    if not isinstance(listed, list):
        raise ModelFormatError(f"{config.where}: layer_types is not a list")
    unknown = [kind for kind in map(str, listed) if kind not in _LAYER_KINDS]
    if unknown:
        raise UnsupportedModelError(
            f"{config.where}: layers of type {unknown[0]!r} are not supported; supported: {', '.join(_LAYER_KINDS)}"
        )
    return tuple(_LAYER_KINDS[kind] for kind in listed)


def _ropes(config: _Config, dim: int, max_context: int) -> tuple[Rope, Rope | None]:
    """Read transformers 5's `rope_parameters` (flat, or one object per layer kind), or the older
    `rope_theta`, `rope_scaling` and `rope_local_base_freq`."""
    theta = config.number("rope_theta", 10_000.0)
    parameters = config.table("rope_parameters")
    nested = {kind: parameters[kind] for kind in _LAYER_KINDS if isinstance(parameters.get(kind), Mapping)}
    if nested:
        full = _rope(nested.get("full_attention", {}), theta, dim, max_context, config.where)
        local = nested.get("sliding_attention")
        return full, local and _rope(local, 10_000.0, dim, max_context, config.where)
    scaling = {**config.table("rope_scaling"), **parameters}
    local_theta = config.number("rope_local_base_freq", 0.0)
    full = _rope(scaling, theta, dim, max_context, config.where)
    return full, Rope(local_theta, dim) if local_theta else None


def _rope(scaling: Mapping[str, Any], theta: float, dim: int, max_context: int, where: str) -> Rope:
    try:
        theta = float(scaling.get("rope_theta", theta))
    except (TypeError, ValueError):
        raise ModelFormatError(f"{where}: rope_theta is {scaling.get('rope_theta')!r}") from None
    return Rope(theta, dim, scaling_divisors(scaling, theta, dim, max_context, where))
