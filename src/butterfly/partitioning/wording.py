"""How sizes, times and costs read in explanations."""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.specs import Objective

_DECIMALS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NEGLIGIBLE = 1e-9  # of a cost: rounding

COST_NAMES: dict[Objective, str] = {
    "latency": "a token",
    "throughput": "each token of all streams",
    "balanced": "the mean of trip and round",
}
"""What the seconds of a cost are the time of, see `objective`."""


def sized(num_bytes: float) -> str:
    """'1.25 GB', in powers of ten."""
    for size, unit in _DECIMALS:
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def timed(seconds: float) -> str:
    """'12.30 ms'; seconds from ten of them on, microseconds below ten."""
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e6:.2f} us" if 0 < seconds < 1e-5 else f"{seconds * 1e3:.2f} ms"


def difference(cost_s: float, other_cost_s: float) -> str:
    """'1.20 ms slower' when the other cost is that much larger."""
    change_s = other_cost_s - cost_s
    if abs(change_s) <= _NEGLIGIBLE * max(cost_s, other_cost_s):
        return "neither faster nor slower"
    return f"{timed(abs(change_s))} {'slower' if change_s > 0 else 'faster'}"


def layer_range(start: int, end: int) -> str:
    """'layers 0-13', with the inclusive numbers that people read, or 'layer 3'."""
    return f"layers {start}-{end - 1}" if end - start > 1 else f"layer {start}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for each row, columns aligned on the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
