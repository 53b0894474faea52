"""The stages and links of one plan, and the way of a step through them."""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial

from butterfly.partitioning import costs
from butterfly.simulation.devices import ModelledLink, ModelledStage
from butterfly.simulation.tokens import sampled_tokens
from butterfly.simulation.virtual_clock import VirtualClock
from butterfly.specs import ClusterSpec, ModelFootprint, Plan, StageTiming, StepPlan, StepResult


class ModelledPipeline:
    """Steps enter by `send`; `finish` is called with each result. A stage on a node that is `dead` swallows them."""

    def __init__(
        self,
        plan: Plan,
        model: ModelFootprint,
        cluster: ClusterSpec,
        clock: VirtualClock,
        rows_per_weight_pass: int,
        dead: Set[str],
        finish: Callable[[StepResult], None],
    ) -> None:
        nodes = {node.name: node for node in cluster.nodes}
        self.stages = [ModelledStage(stage, nodes[stage.worker], model, rows_per_weight_pass) for stage in plan.stages]
        self._links = [ModelledLink(link) for link, _ in costs.trip_links(plan, model, cluster)]
        self._model, self._clock, self._dead, self._finish = model, clock, dead, finish
        self._is_open = True

    def send(self, step: StepPlan) -> None:
        """Start a step."""
        self._send_on(step, ())

    def close(self) -> None:
        """Its plan is no more: what is still under way is dropped at the next border, and nothing comes out."""
        self._is_open = False

    def _send_on(self, step: StepPlan, timings: tuple[StageTiming, ...]) -> None:
        """Send a step on: as many stages as have stamped it are behind it."""
        hop = len(timings)
        if hop == 0:
            num_bytes = step.num_tokens * costs.TOKEN_BYTES
        elif hop < len(self.stages):
            num_bytes = step.num_tokens * self._model.hidden_bytes_per_token
        else:
            num_bytes = len(sampled_tokens(step)) * costs.TOKEN_BYTES
        arrived_s = self._links[hop].send(num_bytes, self._clock.now_s)
        self._clock.at(arrived_s, partial(self._receive, step, num_bytes, timings))

    def _receive(self, step: StepPlan, num_bytes: int, timings: tuple[StageTiming, ...]) -> None:
        if not self._is_open:
            return
        if len(timings) == len(self.stages):
            self._finish(StepResult(step_id=step.step_id, samples=sampled_tokens(step), timings=timings))
            return
        stage = self.stages[len(timings)]
        if stage.worker not in self._dead:
            timing = stage.run(step, num_bytes, self._clock.now_s)
            self._clock.at(timing.finished_s, partial(self._leave, step, (*timings, timing)))

    def _leave(self, step: StepPlan, timings: tuple[StageTiming, ...]) -> None:
        if self._is_open and timings[-1].worker not in self._dead:
            self._send_on(step, timings)
