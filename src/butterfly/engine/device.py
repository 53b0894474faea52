"""Devices and dtypes by the names that users type."""

from __future__ import annotations

import ctypes
import sys

import torch

from butterfly.errors import ConfigError
from butterfly.specs import ComputeDType

TORCH_DTYPES: dict[ComputeDType, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises ConfigError in one line."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ConfigError(f"device {name} was asked for, but this PyTorch sees no CUDA device; use --device cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name} was asked for, but there are only {torch.cuda.device_count()} CUDA devices")
    return torch.device(kind, int(index or 0))


def return_free_memory() -> None:
    """Give memory that was freed, but that the C library keeps for later, back to the system.

    After loading that is more than the weights of a small stage. Only glibc needs and has this.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
