"""What steps cost, learned from the timings that come back with them, and what follows for the next chunk.

A step takes about `base + per_token * prompt tokens` on the slowest stage. Both figures are medians over the last
steps, because on shared machines one hiccup outweighs a hundred ordinary steps in a mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil, sqrt
from statistics import median

from butterfly.specs import StageTiming

_WINDOW = 31  # steps
_MIN_CHUNK = 4  # tokens: a prompt always moves on
_MIN_ALONE_CHUNK = 16  # tokens, where no reader of another stream waits for the step
_READER_SHARE = 0.75  # how much of a decode step's own time a chunk may add to it: well under twice the wait
_MAX_STEP_S = 0.5  # a step that nobody reads from still delays whoever comes next


class StageTimes:
    """Times of the slowest stage. Seconds; all None until steps have come back with timings."""

    def __init__(self) -> None:
        self._decode_s: deque[float] = deque(maxlen=_WINDOW)  # steps without prompt tokens
        self._per_token_s: deque[float] = deque(maxlen=_WINDOW)

    def record(self, timings: Sequence[StageTiming], num_prefill_tokens: int) -> None:
        """Take in one step that had any tokens."""
        if not timings:
            return
        slowest_s = max(timing.finished_s - timing.started_s for timing in timings)
        if num_prefill_tokens == 0:
            self._decode_s.append(slowest_s)
        elif num_prefill_tokens >= _MIN_CHUNK:  # fewer say little about one token
            # The rest cannot be less than nothing; half is a guess for steps where the base is most of it.
            prefill_s = max(slowest_s - (self.base_s or 0.0), slowest_s / 2)
            self._per_token_s.append(prefill_s / num_prefill_tokens)

    @property
    def base_s(self) -> float | None:
        """A step without prompt tokens, as batches are now."""
        return median(self._decode_s) if self._decode_s else None

    @property
    def per_token_s(self) -> float | None:
        """One more prompt token in a step."""
        return median(self._per_token_s) if self._per_token_s else None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """What the slowest stage prefills when it does nothing else."""
        return None if self.per_token_s is None else 1 / max(self.per_token_s, 1e-9)

    def chunk_tokens(self, num_waiting_tokens: int, num_stages: int, first_guess: int, *, beside_decodes: bool) -> int:
        """Return how many prompt tokens the next step should take of `num_waiting_tokens`.

        Beside decode steps: what adds three quarters of a decode step's own time, so that readers of other
        streams wait less than twice as long. Alone: n tokens in m chunks through S stages take
        (m + S - 1) (base + per_token n / m), which is least for chunks of sqrt(n base / (per_token (S - 1))).
        """
        base_s, per_token_s = self.base_s, self.per_token_s
        if per_token_s is None:
            return first_guess
        per_token_s = max(per_token_s, 1e-9)
        if beside_decodes:
            return first_guess if base_s is None else max(_MIN_CHUNK, ceil(base_s * _READER_SHARE / per_token_s))
        chunk = _MAX_STEP_S / per_token_s
        if num_stages > 1:
            fixed_s = base_s if base_s is not None else per_token_s
            chunk = min(chunk, sqrt(num_waiting_tokens * fixed_s / (per_token_s * (num_stages - 1))))
        return max(_MIN_ALONE_CHUNK, int(chunk))
