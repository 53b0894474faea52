"""How fast this device multiplies matrices, by the kind of number: a node's arithmetic in three figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from butterfly.engine.device import TORCH_DTYPES
from butterfly.engine.int8_linear import Int8Linear

_ROWS, _SIDE = 512, 2048
_MEASURED_S = 0.1  # of each kind, after one product to warm up


@torch.inference_mode()
def matrix_rates(device: torch.device, *, with_int8: bool) -> Mapping[str, float]:
    """Return the operations per second (a product and its addition are two) of large matrix products.

    By name: `bfloat16`, `float32`, and `int8` if `with_int8`, whose kernel is for CPUs. Takes about half a second.
    """
    rates = {}
    for name in ("bfloat16", "float32"):
        x = torch.ones(_ROWS, _SIDE, dtype=TORCH_DTYPES[name], device=device)
        weight = torch.ones(_SIDE, _SIDE, dtype=TORCH_DTYPES[name], device=device)
        rates[name] = _rate(lambda x=x, weight=weight: x @ weight.T, device)  # type: ignore[misc]
    if with_int8:
        linear = Int8Linear(_SIDE, _SIDE)
        linear.fill(0, torch.ones(_SIDE, _SIDE))
        linear.finish()
        x_bytes = torch.ones(_ROWS, _SIDE, dtype=torch.uint8)
        rates["int8"] = _rate(lambda: linear.sums(x_bytes), device)
    return rates


def _rate(multiply: Callable[[], torch.Tensor], device: torch.device) -> float:
    multiply()
    _wait(device)
    best_s, started_s = float("inf"), time.perf_counter()
    while (begun_s := time.perf_counter()) < started_s + _MEASURED_S:
        multiply()
        _wait(device)
        best_s = min(best_s, time.perf_counter() - begun_s)
    return 2 * _ROWS * _SIDE * _SIDE / best_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
