"""Who is alive and what to do next, as a pure state machine: events in, actions out.

    starting --all expected joined--> measuring --PlanMade--> loading --every WorkerLoaded--> ready <---+
        |                                |                     |   ^                           |        | all loaded
        +---- lost, PlanRefused ---------+---------------------+   |PlanMade      lost, drain, |        |
        v                                |                         |              a better plan|        |
      failed  (nobody else may join)     +--> waiting -------------+                           +--> moving
                                         (others may join) ^                                         |
                                                           +--------------- PlanRefused -------------+
    StopRequested (from anywhere) --> stopping

- A plan may leave workers out: those stand by, hold nothing, and are not waited for.
- A worker is lost when it misses a deadline, exits, fails or leaves. Without it a plan is made anew: requests are held
  (`moving`), or, where nothing fits, end with an error that names it (`waiting`, until more workers come). Before the
  first `ready` there is nothing to save: the loss of a worker that was expected ends the start.
- A worker that joins while others serve is measured, and moved to only where that pays, and when.
- One question is open at a time, a measurement or a plan, so that no answer speaks of a cluster that is no more.

What may happen when is `_TRANSITIONS`, the table at the end; anything else raises IllegalTransitionError with the
story so far. Late words of workers that are lost, and in `failed` and `stopping`, are not illegal, only ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from butterfly.cluster import attendance, progress
from butterfly.cluster.actions import Action
from butterfly.cluster.events import (
    ClusterMeasured,
    DrainRequested,
    Event,
    MeasuringProgressed,
    PlanMade,
    PlanRefused,
    StopRequested,
    Ticked,
    WorkerBeat,
    WorkerEvent,
    WorkerExited,
    WorkerFailed,
    WorkerJoined,
    WorkerLeft,
    WorkerLoaded,
    WorkerLoadProgressed,
)
from butterfly.cluster.facts import Facts
from butterfly.cluster.members import Deadlines
from butterfly.specs import ClusterPhase, ClusterSpec, Plan, Recovery, WorkerStatus


class ClusterState:
    """The cluster as the coordinator knows it. `now_s` is on the same clock as the events.

    `expected_workers` are those that we start ourselves; with `is_open` others may join at any time.
    Raises ValueError when there is nobody to wait for.
    """

    def __init__(
        self,
        expected_workers: Sequence[str],
        now_s: float,
        deadlines: Deadlines | None = None,
        *,
        is_open: bool = False,
    ) -> None:
        if not expected_workers and not is_open:
            raise ValueError("no worker is expected and none may join")
        self._facts = Facts(expected_workers, now_s, deadlines or Deadlines(), is_open=is_open)

    # --------------------------------------------------------------------------------- questions

    @property
    def phase(self) -> ClusterPhase:
        return self._facts.phase

    @property
    def epoch(self) -> int:
        """Of the newest plan; 0 before any."""
        return self._facts.epoch

    @property
    def cluster(self) -> ClusterSpec | None:
        """As measured, without those that are lost; None before."""
        return self._facts.cluster if self._facts.measured else None

    @property
    def plan(self) -> Plan | None:
        """The newest one; None before any, and while nothing fits."""
        return self._facts.plan

    @property
    def detail(self) -> str:
        """One line: why not ready. When ready, who was lost, stands by or is being measured, if anybody."""
        return self._facts.detail

    @property
    def recovery(self) -> Recovery | None:
        """The times of the last move, or of the one under way; None before any."""
        return self._facts.recovery

    @property
    def story(self) -> tuple[str, ...]:
        """The last events, oldest first, without heartbeats, progress and ticks."""
        return tuple(self._facts.story)

    def drain_refusal(self, worker: str) -> str:
        """Return why this worker may not leave, and what would let it; empty while nothing speaks against it."""
        return self._facts.drains.refusal(worker)

    def snapshot(self) -> tuple[WorkerStatus, ...]:
        """Return the status of every worker: those expected, then the others in the order of their first joining."""
        stages = {stage.worker: stage for stage in self.plan.stages} if self.plan else {}
        return tuple(member.status(stages.get(member.name)) for member in self._facts.roster)

    # ------------------------------------------------------------------------------------ events

    def handle(self, event: Event) -> list[Action]:
        """Take in one event and return what to do, in order. Raises IllegalTransitionError.

        What is answered at once stands last in the list. Raises ValueError when somebody wants a worker to leave
        that is not there.
        """
        facts = self._facts
        handler = _TRANSITIONS[facts.phase].get(type(event))
        if handler is None:
            raise facts.illegal(event, f"cannot happen while {facts.phase}")
        if isinstance(event, WorkerEvent) and not isinstance(event, DrainRequested) and not self._is_known(event):
            if facts.roster.is_former(event.worker) or facts.phase in ("failed", "stopping"):
                return []
            raise facts.illegal(event, f"names an unknown worker; known are {', '.join(facts.roster.names)}")
        if not isinstance(event, WorkerBeat | MeasuringProgressed | WorkerLoadProgressed | Ticked):
            facts.story.append(f"{event.now_s:.3f} {facts.phase}: {event.describe()}")
        return handler(facts, event)

    def _is_known(self, event: WorkerEvent) -> bool:
        return event.worker in self._facts.roster or (self._facts.is_open and isinstance(event, WorkerJoined))


_Handler = Callable[[Facts, Any], list[Action]]  # Any: each handler takes its own kind of event


def _ignore(facts: Facts, event: Event) -> list[Action]:
    return []


_ALWAYS: Mapping[type[Event], _Handler] = {
    WorkerJoined: attendance.joined,
    WorkerBeat: attendance.beat,
    WorkerFailed: attendance.failed,
    WorkerLeft: attendance.left,
    WorkerExited: attendance.exited,
    DrainRequested: attendance.drain,
    Ticked: attendance.ticked,
    StopRequested: attendance.stop,
}
_ANSWERS: Mapping[type[Event], _Handler] = {
    MeasuringProgressed: progress.measuring_progressed,
    ClusterMeasured: progress.measured,
    PlanMade: progress.plan_made,
    PlanRefused: progress.plan_refused,
}
_LOADING: Mapping[type[Event], _Handler] = {
    WorkerLoadProgressed: progress.load_progressed,
    WorkerLoaded: progress.loaded,
}
_AFTER_THE_END: Mapping[type[Event], _Handler] = {
    **dict.fromkeys([WorkerJoined, *_ANSWERS, *_LOADING], _ignore),
    WorkerBeat: attendance.beat,
    WorkerFailed: attendance.note_loss,
    WorkerLeft: attendance.note_loss,
    WorkerExited: attendance.note_loss,
}

_TRANSITIONS: Mapping[ClusterPhase, Mapping[type[Event], _Handler]] = {
    "starting": _ALWAYS,
    "measuring": {**_ALWAYS, **_ANSWERS},
    "loading": {**_ALWAYS, **_ANSWERS, **_LOADING},
    "ready": {**_ALWAYS, **_ANSWERS},
    "moving": {**_ALWAYS, **_ANSWERS, **_LOADING},
    # Who loads what has been given up may say so.
    "waiting": {**_ALWAYS, **_ANSWERS, WorkerLoadProgressed: _ignore, WorkerLoaded: _ignore},
    "failed": {
        **_AFTER_THE_END,
        DrainRequested: attendance.drain,
        Ticked: attendance.ping,
        StopRequested: attendance.stop,
    },
    "stopping": {**_AFTER_THE_END, DrainRequested: _ignore, Ticked: _ignore, StopRequested: _ignore},
}
