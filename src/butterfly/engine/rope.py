"""Rotary position embedding (Su et al., 2021) with per-pair frequency divisors (llama3, linear scaling).

Tables grow by fixed blocks of positions, so that a position has the same bits however it was reached.
"""

from __future__ import annotations

import torch

from butterfly.specs import RopeSpec

_BLOCK = 1024  # positions


class Rope:
    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        self._interleaved = spec.interleaved
        self._dim = spec.dim
        exponents = torch.arange(0, spec.dim, 2, dtype=torch.int64).float() / spec.dim
        self._inv_freq = 1.0 / (spec.theta**exponents)
        if spec.freq_divisors:
            self._inv_freq = self._inv_freq / torch.tensor(spec.freq_divisors)
        self._device = device
        self._cos: list[torch.Tensor] = []  # blocks [_BLOCK, dim / 2]
        self._sin: list[torch.Tensor] = []
        self._cos_table = self._sin_table = torch.empty(0, spec.dim // 2, device=device)

    def angles(self, positions_M: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, each float32 [M, 1, dim / 2]; `last` is the largest position."""
        while len(self._cos) * _BLOCK <= last:
            self._grow()
        return self._cos_table[positions_M][:, None], self._sin_table[positions_M][:, None]

    def rotate(self, x_MHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return float32 x_MHD with its first `dim` values of each head rotated; the rest passes through."""
        rotated = x_MHD[..., : self._dim].float()
        if self._interleaved:
            first, second = rotated[..., 0::2], rotated[..., 1::2]
        else:
            first, second = rotated.chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        y = torch.stack(turned, dim=-1).flatten(-2) if self._interleaved else torch.cat(turned, dim=-1)
        if self._dim == x_MHD.shape[-1]:
            return y
        return torch.cat([y, x_MHD[..., self._dim :].float()], dim=-1)

    def _grow(self) -> None:
        start = len(self._cos) * _BLOCK
        angles = torch.outer(torch.arange(start, start + _BLOCK).float(), self._inv_freq)
        self._cos.append(angles.cos().to(self._device))
        self._sin.append(angles.sin().to(self._device))
        self._cos_table, self._sin_table = torch.cat(self._cos), torch.cat(self._sin)
