"""Activation functions whose bits do not depend on the number of rows or threads.

The library computes exponentials of whole vectors in another way than those that remain at the end of a range, and it
cuts a large tensor into one range for each thread, wherever that falls. So what it gets here is either too small to be
cut, or is cut between vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

from butterfly.specs import Activation

_FUNCTIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
_UNCUT = 16384  # values that no function gives to several threads
_SURELY_CUT = 32768  # values per thread from which on every function uses all threads, with equal shares
_VECTORS = 32  # values that a loop handles at once


def activate(kind: Activation, x_MF: torch.Tensor) -> torch.Tensor:
    """Return the activation of each value of rows that lie apart, such as one half of gate and up."""
    function = _FUNCTIONS[kind]
    num_threads = torch.get_num_threads()
    num_values = x_MF.numel()
    is_cut_between_vectors = num_values % (_VECTORS * num_threads) == 0 and num_values > _SURELY_CUT * num_threads
    if x_MF.device.type != "cpu" or num_threads == 1 or num_values <= _UNCUT or is_cut_between_vectors:
        return function(x_MF)
    width = x_MF.shape[1]
    if width > _UNCUT:
        return torch.cat([activate(kind, part) for part in torch.split(x_MF, _UNCUT, dim=1)], dim=1)
    return torch.cat([function(part) for part in torch.split(x_MF, _UNCUT // width)])
