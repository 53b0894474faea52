"""What has to be computed once more after a move, and what need not: stages keep the KV cache of layers that they keep.

Each stage also keeps the hidden states that it sent, at its border with the next one. From the last border before the
first layer that was lost, the lost layers alone are computed again; no token goes through the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from butterfly.specs import KeptSequence, LayerRange, Plan, StagePlan


class Kept(NamedTuple):
    """What stages keep through a move."""

    refill: LayerRange | None = None  # the layers that compute cached tokens once more; None: all, nothing is kept
    workers: frozenset[str] = frozenset()  # whose stage has the KV cache of the plan that was in force
    sequences: tuple[KeptSequence, ...] = ()


class Standing:
    """Who still has the KV cache of the plan that is, or was, in force."""

    def __init__(self) -> None:
        self._stages: dict[str, StagePlan] = {}

    def serve(self, plan: Plan) -> None:
        """Every stage runs, and has what it computes from now on."""
        self._stages = {stage.worker: stage for stage in plan.stages}

    def forget(self, worker: str) -> None:
        self._stages.pop(worker, None)

    def move(self, plan: Plan) -> Kept:
        """Return what stays under another plan, but for the sequences. `serve` comes next.

        Who has been left out by a plan in between has a cache, too, but an old one.
        """
        stages, self._stages = self._stages, {}
        return Kept(refill_range(stages, plan), frozenset(stages))


def refill_range(before: Mapping[str, StagePlan], after: Plan) -> LayerRange | None:
    """The fewest layers in a row, from a border that is kept, that hold all that was lost; None: they are all layers.

    `before` has the stages of workers that live. A border is kept by the stage before it. What the next move may need
    counts as lost, too: hidden states at a border that is new.
    """
    lost = [
        layer
        for stage in after.stages
        for layer in range(stage.start, stage.end)
        if not (stage.worker in before and before[stage.worker].start <= layer < before[stage.worker].end)
    ]
    lost += [stage.end - 1 for stage in after.stages[:-1] if not _keeps_border(before, stage, stage.end)]
    num_layers = after.stages[-1].end
    first, end = min(lost, default=0), max(lost, default=num_layers - 1) + 1
    borders = [
        before[stage.worker].end
        for stage in after.stages
        if stage.worker in before and _keeps_border(before, stage, before[stage.worker].end)
    ]
    start = max((border for border in borders if border <= first), default=0)
    return None if (start, end) == (0, num_layers) else LayerRange(start=start, end=end)


def _keeps_border(before: Mapping[str, StagePlan], stage: StagePlan, border: int) -> bool:
    """Whether this stage has the hidden states before layer `border`: they were its last, and are still on its way."""
    old = before.get(stage.worker)
    return old is not None and not old.head and old.end == border and stage.start < border <= stage.end
