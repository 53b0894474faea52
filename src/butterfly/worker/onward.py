"""Where a stage's output goes: to the next worker of the pipeline, or to the coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec.structs import replace

from butterfly.communication import Outbox, Transport
from butterfly.errors import PeerTimeoutError, WorkerError
from butterfly.messages import Load, Message, Result, Step
from butterfly.specs import StageTiming, StepPlan
from butterfly.worker.stage import Buffer, HiddenState, StageOutput

_LOOK_S = 0.1  # while a neighbour takes nothing: it may be gone, and a new plan waiting in our inbox


class Onward:
    """The connection to the next stage of the present plan."""

    def __init__(self, transport: Transport, coordinator: Outbox, deadline_s: float) -> None:
        self._transport, self._coordinator, self._deadline_s = transport, coordinator, deadline_s
        self._next = coordinator

    def enter(self, load: Load) -> None:
        """Connect to the neighbour that a plan names, and let go of the one before."""
        self.close()
        if load.next.name != self._coordinator.peer.name:
            self._next = self._transport.connect(load.next)

    def close(self) -> None:
        """Let go of the neighbour; the coordinator's connection is its owner's to close."""
        if self._next is not self._coordinator:
            self._next.close()
            self._next = self._coordinator

    def hand_on(
        self, load: Load, step: Step, output: StageOutput, timings: tuple[StageTiming, ...], attend: Callable[[], None]
    ) -> None:
        """Send what the stage of `load` made of a step. `attend` looks at the inbox, and may raise to give up.

        Raises PeerTimeoutError naming the peer when it takes nothing, and WorkerError for an output that is not this
        stage's to give.
        """
        if isinstance(output, HiddenState) == load.stage.head:
            wanted = "an answer" if load.stage.head else "a hidden state"
            raise WorkerError(f"the stage of {load.stage.worker} did not return {wanted}", load.stage.worker)
        if isinstance(output, HiddenState):
            plan = _without_token_ids(step.plan)
            onward = Step(epoch=step.epoch, plan=plan, hidden=output.header, timings=timings)
            self._send(self._next, onward, output.payload, attend)
        else:
            result = Result(
                epoch=step.epoch,
                step_id=step.plan.step_id,
                samples=output.samples,
                scores=output.scores,
                timings=timings,
            )
            self._send(self._coordinator, result, None, attend)

    def _send(self, outbox: Outbox, message: Message, payload: Buffer | None, attend: Callable[[], None]) -> None:
        deadline_s = time.monotonic() + self._deadline_s
        while True:
            try:
                outbox.send(message, payload, timeout_s=min(_LOOK_S, self._deadline_s))
            except PeerTimeoutError as error:
                attend()
                if time.monotonic() >= deadline_s:
                    raise PeerTimeoutError(
                        f"{outbox.peer.name} took nothing for {self._deadline_s:g} s: {error}", outbox.peer.name
                    ) from error
            else:
                return


def _without_token_ids(plan: StepPlan) -> StepPlan:
    if not any(sequence.token_ids for sequence in plan.sequences):
        return plan
    return replace(plan, sequences=tuple(replace(sequence, token_ids=()) for sequence in plan.sequences))
