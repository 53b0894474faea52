"""Whether a figure that was sampled over time is flat. Times in seconds; values in whatever unit they came in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import median

from butterfly.specs import Spec

_SECONDS_PER_HOUR = 3600
_THIRDS = 3
_LEAST_POINTS = 9  # three in each third: fewer say nothing

Point = tuple[float, float]  # time, value


class Trend(Spec, frozen=True):
    """Of the points after the warm-up: per hour by Theil-Sen, and median and minimum of each third of the time."""

    per_hour: float
    medians: tuple[float, ...]
    minima: tuple[float, ...]

    @property
    def growth(self) -> float:
        """From the first third to the last one, by their medians."""
        return self.medians[-1] - self.medians[0]

    def rises_steadily(self, allowance: float) -> bool:
        """Whether median and minimum rise from third to third, and the minimum by more than `allowance` in all.

        The minimum is what it comes down to when least goes on: workers that come and go move the median, too.
        """
        rises = all(after > before for values in (self.medians, self.minima) for before, after in pairwise(values))
        return rises and self.per_hour > 0 and self.minima[-1] - self.minima[0] > allowance


def without_warm_up(points: Sequence[Point], share: float) -> list[Point]:
    """Return the points after this share of the time that they span."""
    if not points:
        return []
    start_s, end_s = points[0][0], points[-1][0]
    return [point for point in points if point[0] >= start_s + share * (end_s - start_s)]


def trend(points: Sequence[Point]) -> Trend | None:
    """Return the trend of points in order of time, None when there are too few of them to tell."""
    if len(points) < _LEAST_POINTS:
        return None
    size = len(points) / _THIRDS
    thirds = [[value for _, value in points[round(i * size) : round((i + 1) * size)]] for i in range(_THIRDS)]
    return Trend(
        per_hour=_theil_sen(points) * _SECONDS_PER_HOUR,
        medians=tuple(float(median(third)) for third in thirds),
        minima=tuple(float(min(third)) for third in thirds),
    )


def _theil_sen(points: Sequence[Point]) -> float:
    """The median of the slopes between all pairs: a few wild samples do not move it."""
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(points, 2) if t > s]
    return float(median(slopes)) if slopes else 0.0
