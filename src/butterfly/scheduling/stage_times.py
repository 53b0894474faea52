"""What steps cost, learned from the timings that come back with them, and what follows for the next chunk.

A step takes about `base + per_token * tokens` on the slowest stage, whether its tokens are prompt or output. The line
is fitted by medians (Theil 1950, Sen 1968), because on shared machines one hiccup outweighs a hundred ordinary steps
in a least-squares fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import combinations
from math import ceil, sqrt
from statistics import median

from butterfly.specs import StageTiming

_WINDOW = 24  # steps: a change of load is learned in a second or two
_FIT_EVERY = 8  # steps, also while nobody asks: a slope must be learned before its steps leave the window
_MIN_CHUNK = 4  # tokens: a prompt always moves on
_MIN_ALONE_CHUNK = 16  # tokens, where no reader of another stream waits for the step
_READER_SHARE = 0.5  # how much of a decode step's own time a chunk may add to it; at 0.75 readers waited 2.2x as long
_MAX_STEP_S = 1.0  # a step that nobody reads from still delays whoever comes next; at 0.5 prompts took 1.1x as long
_SMALLEST_S = 1e-9


class StageTimes:
    """Times of the slowest stage. Seconds; None until steps have come back with timings."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=_WINDOW)  # (tokens, seconds)
        self._base_s = 0.0
        self._per_token_s: float | None = None
        self._num_unfitted = 0

    def start_afresh(self) -> None:
        """Other stages from now on. The line stays until they have been measured: a chunk depends on the ratio of its
        two figures, and with other layers both grow alike."""
        self._steps.clear()
        self._num_unfitted = 0

    def record(self, timings: Sequence[StageTiming], num_tokens: int) -> None:
        """Take in one step."""
        if timings and num_tokens:
            slowest_s = max(timing.finished_s - timing.started_s for timing in timings)
            self._steps.append((num_tokens, slowest_s))
            self._num_unfitted += 1
            if self._num_unfitted >= _FIT_EVERY:
                self._fit()

    @property
    def base_s(self) -> float | None:
        """What a step takes before its first token."""
        self._fit()
        return None if self._per_token_s is None else self._base_s

    @property
    def per_token_s(self) -> float | None:
        """What one more token adds."""
        self._fit()
        return self._per_token_s

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """What the slowest stage prefills when it does nothing else."""
        return None if self.per_token_s is None else 1 / self.per_token_s

    def chunk_tokens(self, num_waiting_tokens: int, num_stages: int, first_guess: int, *, num_decodes: int) -> int:
        """Return how many prompt tokens the next step should take of `num_waiting_tokens`.

        Beside decode tokens: what adds half of their own time to the step, so that readers of other streams wait
        less than twice as long, though tokens of a long prompt cost more than others. Alone: n tokens in m chunks
        through S stages take (m + S - 1) (base + per_token n / m), which is least for chunks of
        sqrt(n base / (per_token (S - 1))).
        """
        base_s, per_token_s = self.base_s, self.per_token_s
        if base_s is None or per_token_s is None:
            return first_guess
        if num_decodes:
            return max(_MIN_CHUNK, ceil(_READER_SHARE * (base_s / per_token_s + num_decodes)))
        chunk = _MAX_STEP_S / per_token_s
        if num_stages > 1:
            fixed_s = max(base_s, per_token_s)
            chunk = min(chunk, sqrt(num_waiting_tokens * fixed_s / (per_token_s * (num_stages - 1))))
        return max(_MIN_ALONE_CHUNK, int(chunk))

    def _fit(self) -> None:
        """Fit the line to the last steps. Steps of one size say nothing of the slope: then the old one stays."""
        if not self._num_unfitted:
            return
        self._num_unfitted = 0
        apart = max(2, max(size for size, _ in self._steps) // 4)
        slopes = [
            (later_s - earlier_s) / (later - earlier)
            for (earlier, earlier_s), (later, later_s) in combinations(self._steps, 2)
            if abs(later - earlier) >= apart
        ]
        mean_s = max(_SMALLEST_S, median(seconds / size for size, seconds in self._steps))
        known_s = mean_s if self._per_token_s is None else self._per_token_s
        slope_s = median(slopes) if slopes else known_s
        # More than the whole step cannot be due to its tokens, and less than nothing is noise.
        self._per_token_s = min(max(slope_s, mean_s / 100), mean_s)
        self._base_s = max(0.0, median(seconds - self._per_token_s * size for size, seconds in self._steps))
