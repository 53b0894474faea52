"""Sizes, rates and times as people write them, always with a unit, and back without loss.

Decimal arithmetic: what a float prints as, moved by powers of ten and back, is the same float.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from butterfly.errors import ConfigError

_NUMBER = r"(\d+(?:\.\d+)?)\s*"
_POWERS = {"T": 12, "G": 9, "M": 6, "k": 3, "": 0}
_SIZES = {f"{letter}B": 10**power for letter, power in _POWERS.items()} | {
    f"{letter}iB": 1 << shift for letter, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10))
}
_BITS_PER_BYTE = 8
_BYTE_RATES = {f"{letter}B/s": Decimal(1).scaleb(power) for letter, power in _POWERS.items()}
_BIT_RATES = {f"{letter}b/s": Decimal(1).scaleb(power) / _BITS_PER_BYTE for letter, power in _POWERS.items()}
_COUNTS = {letter: Decimal(1).scaleb(power) for letter, power in _POWERS.items()}
_TIMES = {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6")}


def parse_size(text: str, where: str) -> int:
    """'16GB' -> 16 * 10^9 bytes. Raises ConfigError, as all here."""
    sizes = {unit: Decimal(size) for unit, size in _SIZES.items()}
    return int(_parse(text, sizes, where, "a size", "16GB or 16GiB"))


def parse_rate(text: str, where: str) -> float:
    """'1Gb/s' and '125MB/s' -> 1.25e8 bytes per second."""
    return _positive(_parse(text, _BYTE_RATES | _BIT_RATES, where, "a rate", "1Gb/s (bits) or 125MB/s (bytes)"), where)


def parse_count_rate(text: str, where: str) -> float:
    """'800G' -> 8e11 operations per second."""
    return _positive(_parse(text, _COUNTS, where, "a number per second", "800G"), where)


def parse_time(text: str, where: str) -> float:
    """'0.5ms' -> 5e-4 seconds."""
    return float(_parse(text, _TIMES, where, "a time", "0.5ms"))


def format_size(num_bytes: int) -> str:
    """In the largest unit that leaves a whole number."""
    whole = [(size, unit) for unit, size in _SIZES.items() if num_bytes % size == 0]
    size, unit = max(whole)
    return f"{num_bytes // size}{unit}" if num_bytes else "0B"


def format_rate(bytes_per_s: float) -> str:
    return _format(bytes_per_s, _BYTE_RATES)


def format_count_rate(per_s: float) -> str:
    return _format(per_s, _COUNTS)


def format_time(seconds: float) -> str:
    return _format(seconds, {unit: _TIMES[unit] for unit in ("s", "ms")})


def _parse(text: str, units: Mapping[str, Decimal], where: str, what: str, example: str) -> Decimal:
    match = re.fullmatch(_NUMBER + "(" + "|".join(units) + ")", text.strip())
    if match is None:
        raise ConfigError(f"{where}: {text!r} is not {what}; write it like {example}")
    return Decimal(match[1]) * units[match[2]]


def _positive(value: Decimal, where: str) -> float:
    if not 0 < float(value) < float("inf"):
        raise ConfigError(f"{where}: must be more than 0")
    return float(value)


def _format(value: float, units: Mapping[str, Decimal]) -> str:
    """In the largest unit of which it is at least one, or else the smallest."""
    exact = Decimal(repr(value))
    unit = next((unit for unit, size in units.items() if exact >= size), list(units)[-1])
    number = format((exact / units[unit]).normalize(), "f")
    return f"{number}{unit}"
