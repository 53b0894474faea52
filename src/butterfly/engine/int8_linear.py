"""Matrix products in 8-bit integers, for CPUs that have instructions for them (VNNI).

Weights are signed bytes with a scale for each output row; activations are 16 bits, as two rows of unsigned bytes:
x = (256 (high - 128) + (low - 128)) * scale, with a scale for each token. Eight bits would not do: a few channels of
an activation are a hundred times larger than the others (SmolLM2's perplexity rises by 5 % with 8 bits, not with 16).

The sums are whole numbers, so a row has the same bits whatever the other rows are and in whatever order they are
added: here exactness comes from the arithmetic, not from the choice of a kernel.

Next to the packed 4-bit kernel: about the same time for one row, a third for 16, a fourth from 64 on; a byte for
every weight instead of 5 bits; a weight is rounded to 1/254 of the largest of its row.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch.nn import functional as F

_WEIGHT_LEVELS = 127.0
_ACTIVATION_LEVELS = 32512.0  # 127 * 256: with the offset, two bytes hold it
_OFFSET = 128 * 256 + 128
_ZERO_POINT = 128  # of either byte; the instruction multiplies unsigned by signed bytes
_TINY = 1e-30  # in place of the scale of zeros


class Int8Linear:
    """y[M, N] = x[M, K] @ w[N, K]^T (+ bias[N]) in float32."""

    def __init__(self, num_rows: int, in_features: int) -> None:
        self._weight = torch.empty(num_rows, in_features, dtype=torch.int8)
        self._scale = torch.empty(num_rows, dtype=torch.float32)
        self._zero = torch.zeros(num_rows, dtype=torch.int64)
        self._bias: torch.Tensor | None = None
        self.num_bytes = self._weight.nbytes + self._scale.nbytes + self._zero.nbytes

    def fill(self, first_row: int, values_NK: torch.Tensor) -> None:
        """Set output rows from `first_row` on, given as float32."""
        rows = slice(first_row, first_row + len(values_NK))
        scale = (values_NK.abs().amax(dim=1) / _WEIGHT_LEVELS).clamp_min_(_TINY)
        self._scale[rows] = scale
        self._weight[rows] = (values_NK / scale[:, None]).round_().to(torch.int8)

    def finish(self, bias_N: torch.Tensor | None = None) -> None:
        """Bring the weights, which are all there now, into the kernel's order."""
        self._weight = torch.ops.onednn.qlinear_prepack(self._weight, None)
        self._bias = bias_N
        self.num_bytes += bias_N.nbytes if bias_N is not None else 0

    def __call__(self, x_MK: torch.Tensor) -> torch.Tensor:
        num_rows = len(x_MK)
        bytes_2MK, scale_M1 = split_bytes(x_MK)
        sums_2MN = self.sums(_padded(bytes_2MK))
        high_MN, low_MN = sums_2MN[:num_rows], sums_2MN[num_rows : 2 * num_rows]
        y_MN = low_MN.add_(high_MN, alpha=256).mul_(scale_M1)
        return y_MN if self._bias is None else y_MN.add_(self._bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Linear:
        """Weights in the kernel's own order have no storage that `deepcopy` knows of."""
        other = copy(self)
        other._weight, other._scale, other._zero = self._weight.clone(), self._scale.clone(), self._zero.clone()
        other._bias = None if self._bias is None else self._bias.clone()
        return other

    def sums(self, bytes_MK: torch.Tensor) -> torch.Tensor:
        """Return (q - 128) @ w^T in float32 for rows of unsigned bytes q."""
        sums_MN: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(bytes_MK, 1.0, _ZERO_POINT, self._weight, self._scale, self._zero, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return sums_MN


def split_bytes(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high bytes of all rows above their low bytes, uint8 [2 M, K], and the scales [M, 1]."""
    scale_M1 = torch.linalg.vector_norm(x_MK, float("inf"), -1, True, dtype=torch.float32)
    scale_M1 = scale_M1.mul_(1 / _ACTIVATION_LEVELS).clamp_min_(_TINY)
    # The half rounds: all is positive here, and the cast cuts off.
    words_MK = torch.div(x_MK, scale_M1).add_(_OFFSET + 0.5).to(torch.int32)
    bytes_MK4 = words_MK.view(torch.uint8).view(*words_MK.shape, 4)  # little-endian, as are all CPUs with VNNI
    return torch.cat([bytes_MK4[..., 1], bytes_MK4[..., 0]]), scale_M1


def _padded(bytes_2MK: torch.Tensor) -> torch.Tensor:
    """The library compiles a kernel for every number of rows, at a millisecond or more: so let there be few of them."""
    num_rows = len(bytes_2MK)
    step = 1 << max(0, num_rows.bit_length() - 4)  # at most an eighth more
    missing = -num_rows % step
    return F.pad(bytes_2MK, (0, 0, 0, missing)) if missing else bytes_2MK
