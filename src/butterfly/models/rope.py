"""Rotary embedding scalings as frequency divisors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

from butterfly.errors import ModelFormatError, UnsupportedModelError
from butterfly.specs import RopeSpec

SUPPORTED_SCALINGS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """What a model file says of one rotary embedding, before it becomes a RopeSpec."""

    theta: float
    dim: int
    divisors: tuple[float, ...] = ()

    def spec(self, interleaved: bool) -> RopeSpec:
        return RopeSpec(theta=self.theta, dim=self.dim, interleaved=interleaved, freq_divisors=self.divisors)


def scaling_divisors(
    scaling: Mapping[str, Any], theta: float, dim: int, max_context: int, where: str
) -> tuple[float, ...]:
    """Return one divisor per rotated pair for a Hugging Face `rope_scaling` / `rope_parameters` object.

    Empty means all ones. Raises UnsupportedModelError for dynamic NTK, YaRN, LongRoPE and the like.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    try:
        if kind in ("default", "none", None):
            return ()
        if kind == "linear":
            return (float(scaling["factor"]),) * (dim // 2)
        if kind == "llama3":
            return llama3_divisors(
                theta,
                dim,
                factor=float(scaling["factor"]),
                low_freq_factor=float(scaling["low_freq_factor"]),
                high_freq_factor=float(scaling["high_freq_factor"]),
                original_context=int(scaling.get("original_max_position_embeddings") or max_context),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFormatError(f"{where}: rope scaling {kind} lacks or spoils {error}") from error
    raise UnsupportedModelError(
        f"{where}: rope scaling {kind!r} is not supported; supported: {', '.join(SUPPORTED_SCALINGS)}"
    )


def llama3_divisors(
    theta: float,
    dim: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_context: int,
) -> tuple[float, ...]:
    """Return Llama 3.1's divisors: long wavelengths are divided by `factor`, short ones kept, the band
    between them blended (published with the Llama 3.1 reference code, `apply_scaling`)."""
    divisors = []
    for pair in range(dim // 2):
        wavelength = 2 * pi * theta ** (2 * pair / dim)
        rotations = original_context / wavelength
        if rotations < low_freq_factor:
            divisors.append(factor)
        elif rotations > high_freq_factor:
            divisors.append(1.0)
        else:
            smooth = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)
            divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(divisors)
