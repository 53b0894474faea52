"""How people write sizes, dtypes and devices, on the command line and in Python."""

from __future__ import annotations

import re
from typing import Literal, get_args

from butterfly.errors import ConfigError
from butterfly.specs import ComputeDType, WeightFormat

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str) -> int:
    """'300M' -> 314572800. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r} is no size; write it like 300M or 4G")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_sizes(text: str) -> tuple[int, ...]:
    """'300M,1G' -> one size for each word; '' -> (). Raises ConfigError."""
    return tuple(parse_bytes(word) for word in text.split(",")) if text.strip() else ()


def parse_dtype(text: str) -> ComputeDType:
    """Raises ConfigError for anything but auto and the compute dtypes."""
    if text == "auto":
        return "bfloat16"
    for dtype in get_args(ComputeDType):
        if text == dtype:
            return dtype  # type: ignore[no-any-return]
    raise ConfigError(f"unknown dtype {text!r}: use auto, {', '.join(get_args(ComputeDType))}")


def parse_weights(text: str) -> WeightFormat | Literal["auto"]:
    """Raises ConfigError for anything but auto and the formats of weights."""
    for weights in ("auto", *get_args(WeightFormat)):
        if text == weights:
            return weights  # type: ignore[no-any-return]
    raise ConfigError(f"unknown weights {text!r}: use auto, {' or '.join(get_args(WeightFormat))}")


def check_device(text: str) -> str:
    """Raises ConfigError for what cannot be a device; whether it exists is for the worker to see."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", text) is None:
        raise ConfigError(f"unknown device {text!r}: use auto, cpu, cuda or cuda:N")
    return text
