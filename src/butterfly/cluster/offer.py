"""A better plan that waits for its moment: a move makes every request that runs wait, at worst for all of its prefill.

Nobody knows how long requests will keep coming, so this is the ski-rental problem. The cluster moves at once when
nothing runs, and else when waiting has cost as much as the move would cost now: that is at most twice what would have
been best in hindsight (Karlin et al., Competitive Snoopy Caching, Algorithmica 1988).
"""

from __future__ import annotations

from butterfly.specs import Plan


class Offer:
    """Times are on the clock of the events, in seconds."""

    def __init__(self, plan: Plan, reason: str, gain: float, now_s: float, waited_s: float = 0.0) -> None:
        """`gain`: the share of all time that the plan would save. `waited_s`: what waiting has cost already."""
        self.plan, self.reason = plan, reason
        self.waited_s = waited_s
        self._gain = gain
        self._looked_s = now_s

    def needs(self, worker: str) -> bool:
        return any(stage.worker == worker for stage in self.plan.stages)

    def is_due(self, refill_s: float, now_s: float) -> bool:
        """Whether to move now. `refill_s`: what the running requests would wait for their prefill; 0: none runs."""
        if refill_s > 0:
            self.waited_s += self._gain * (now_s - self._looked_s)
        self._looked_s = now_s
        return self.waited_s >= refill_s
