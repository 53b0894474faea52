"""Who is alive and what to do next, as a pure state machine: events in, actions out.

    starting --every WorkerJoined--> measuring --ClusterMeasured, PlanMade--> loading --every WorkerLoaded--> ready
        |                                |                                       |                              |
        +------------------- worker lost, PlanRefused ---------------------------+------------------------------+
        |                                                                                                       v
        +---------- StopRequested (from anywhere) --> stopping                                                failed

A plan may leave workers out: those stand by, hold nothing, and are not waited for.

A worker is lost when it misses a deadline, exits or fails. For now that ends the service, unless it stood by: every
request ends with an error that names the worker, and the phase is `failed`. Recovery will stand behind the same
border: the same events, with `MakePlan(survivors)` and `LoadStages(plan, epoch + 1)` in place of
`FailRequests`; the coordinator that carries out actions in order need not change.

What may happen when is `_TRANSITIONS`, the table at the end; anything else raises IllegalTransitionError
with the story so far. Late words of workers in `failed` and `stopping` are not illegal, only ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from butterfly.cluster.actions import (
    Action,
    FailRequests,
    LoadStages,
    MakePlan,
    MeasureCluster,
    PingWorkers,
    ShutDownWorkers,
    StartServing,
    StopServing,
)
from butterfly.cluster.events import (
    ClusterMeasured,
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
    WorkerLoaded,
    WorkerLoadProgressed,
)
from butterfly.cluster.members import Deadlines, Member
from butterfly.specs import ClusterPhase, ClusterSpec, NodeSpec, Plan, WorkerPhase, WorkerStatus

_STORY_LENGTH = 40  # events that an error can tell of


class IllegalTransitionError(RuntimeError):
    """An event that cannot happen now: a bug of the caller. The message ends with the story so far."""


class ClusterState:
    """The cluster as the coordinator knows it. `now_s` is on the same clock as the events."""

    def __init__(self, expected_workers: Sequence[str], now_s: float, deadlines: Deadlines | None = None) -> None:
        self._deadlines = deadlines or Deadlines()
        self._members = {name: Member(name) for name in expected_workers}
        self._phase: ClusterPhase = "starting"
        self._phase_since_s = now_s
        self._pinged_s = now_s
        self._epoch = 0
        self._measured_what = ""  # of the workers in the phase `measuring`
        self._cluster: ClusterSpec | None = None
        self._plan: Plan | None = None
        self._detail = ""  # the first cause of `failed` or `stopping`
        self._lost_spares: list[str] = []  # which workers on standby are gone, and how
        self._story: deque[str] = deque([f"{now_s:.3f} waiting for {self._names()}"], maxlen=_STORY_LENGTH)

    # --------------------------------------------------------------------------------- questions

    @property
    def phase(self) -> ClusterPhase:
        return self._phase

    @property
    def epoch(self) -> int:
        """Of the newest plan; 0 before any."""
        return self._epoch

    @property
    def cluster(self) -> ClusterSpec | None:
        """As measured; None before."""
        return self._cluster

    @property
    def plan(self) -> Plan | None:
        return self._plan

    @property
    def detail(self) -> str:
        """One line: why not ready. When ready, which workers on standby were lost, if any."""
        if self._phase == "starting":
            return f"waiting for {', '.join(m.name for m in self._in_phase('starting'))} to join"
        if self._phase == "measuring":
            measuring = ", ".join(m.name for m in self._in_phase("measuring"))
            return f"measuring {self._measured_what}: {measuring}" if measuring else "making a plan"
        if self._phase == "loading":
            return "loading: " + ", ".join(f"{m.name} {m.load_fraction:.0%}" for m in self._in_phase("loading"))
        if self._phase == "ready":
            return "; ".join(self._lost_spares)
        return self._detail

    @property
    def story(self) -> tuple[str, ...]:
        """The last events, oldest first, without heartbeats, progress and ticks."""
        return tuple(self._story)

    def quietest_worker(self) -> str:
        """Return the worker with a stage that was heard of least recently: who to suspect when a step is late."""
        return min(self._in_phase("ready"), key=lambda member: member.heard_s).name

    def snapshot(self) -> tuple[WorkerStatus, ...]:
        """Return the status of every expected worker, in the order of expectation."""
        stages = {stage.worker: stage for stage in self._plan.stages} if self._plan else {}
        return tuple(member.status(stages.get(member.name)) for member in self._members.values())

    # ------------------------------------------------------------------------------------ events

    def handle(self, event: Event) -> list[Action]:
        """Take in one event and return what to do, in order. Raises IllegalTransitionError."""
        handler = _TRANSITIONS[self._phase].get(type(event))
        if handler is None:
            raise self._illegal(event, f"cannot happen while {self._phase}")
        if isinstance(event, WorkerEvent) and event.worker not in self._members:
            raise self._illegal(event, f"names an unknown worker; known are {self._names()}")
        if not isinstance(event, WorkerBeat | MeasuringProgressed | WorkerLoadProgressed | Ticked):
            self._story.append(f"{event.now_s:.3f} {self._phase}: {event.describe()}")
        return handler(self, event)

    def _joined(self, event: WorkerJoined) -> list[Action]:
        member = self._members[event.worker]
        if member.phase != "starting":
            raise self._illegal(event, f"but {event.worker} is {member.phase} already")
        if event.node.name != event.worker:
            raise self._illegal(event, f"but its node is called {event.node.name}")
        member.join(event)
        nodes = self._nodes()
        if len(nodes) < len(self._members):
            return []
        self._enter("measuring", event.now_s)
        return [MeasureCluster(nodes=nodes)]

    def _measuring_progressed(self, event: MeasuringProgressed) -> list[Action]:
        if not set(event.workers) <= set(self._members):
            raise self._illegal(event, f"names an unknown worker; known are {self._names()}")
        for member in self._members.values():
            was_measuring = member.phase == "measuring"
            if member.name in event.workers and not (was_measuring and event.what == self._measured_what):
                member.start_measuring(event.now_s)
            elif was_measuring and member.name not in event.workers:
                member.finish_measuring(event.now_s)
        self._measured_what = event.what
        return []

    def _measured(self, event: ClusterMeasured) -> list[Action]:
        nodes = [node.name for node in event.cluster.nodes]
        if self._cluster is not None or nodes != list(self._members):
            raise self._illegal(event, f"with nodes {nodes}, once for the workers {self._names()}")
        self._cluster = event.cluster
        for member in self._in_phase("measuring"):
            member.finish_measuring(event.now_s)
        return [MakePlan(cluster=event.cluster)]

    def _plan_made(self, event: PlanMade) -> list[Action]:
        if self._cluster is None:
            raise self._illegal(event, "before the cluster was measured")
        workers = [stage.worker for stage in event.plan.stages]
        if not workers or len(set(workers)) < len(workers) or not set(workers) <= set(self._members):
            raise self._illegal(event, f"with stages on {workers}, but the workers are {self._names()}")
        self._plan = event.plan
        self._epoch += 1
        for member in self._members.values():
            if member.name in workers:
                member.start_loading(event.now_s)
            else:
                member.stand_by(event.now_s)
        self._enter("loading", event.now_s)
        return [LoadStages(plan=event.plan, epoch=self._epoch)]

    def _plan_refused(self, event: PlanRefused) -> list[Action]:
        return self._fail(event.reason, event.now_s)

    def _load_progressed(self, event: WorkerLoadProgressed) -> list[Action]:
        member = self._members[event.worker]
        member.heard_s = event.now_s
        member.load_fraction = event.loaded_bytes / event.total_bytes if event.total_bytes else 1.0
        return []

    def _loaded(self, event: WorkerLoaded) -> list[Action]:
        member = self._members[event.worker]
        if member.phase != "loading":
            raise self._illegal(event, f"but {event.worker} is {member.phase}")
        member.finish_loading(event)
        if self._in_phase("loading"):
            return []
        self._enter("ready", event.now_s)
        return [StartServing(epoch=self._epoch)]

    def _beat(self, event: WorkerBeat) -> list[Action]:
        self._members[event.worker].beat(event)
        return []

    def _failed(self, event: WorkerFailed) -> list[Action]:
        cause = "ran out of memory: " if event.out_of_memory else "failed: "
        return self._lose(event.worker, cause + event.reason, event.now_s)

    def _exited(self, event: WorkerExited) -> list[Action]:
        self._members[event.worker].has_exited = True
        return self._lose(event.worker, event.cause, event.now_s)

    def _ticked(self, event: Ticked) -> list[Action]:
        for member in self._members.values():
            cause = self._missed_deadline(member, event.now_s)
            actions = self._lose(member.name, cause, event.now_s) if cause else []
            if actions:
                return actions
        return self._ping(event)

    def _ping(self, event: Ticked) -> list[Action]:
        alive = tuple(m.name for m in self._members.values() if m.is_connected)
        if not alive or event.now_s - self._pinged_s < self._deadlines.ping_interval_s:
            return []
        self._pinged_s = event.now_s
        return [PingWorkers(epoch=self._epoch, workers=alive)]

    def _stop(self, event: StopRequested) -> list[Action]:
        was_serving = self._phase == "ready"
        reason = event.reason or "the server is stopping"
        self._enter("stopping", event.now_s, reason)
        running = tuple(m.name for m in self._members.values() if m.node is not None and not m.has_exited)
        stop: list[Action] = [StopServing(reason=reason)] if was_serving else []
        return [*stop, FailRequests(reason=reason), ShutDownWorkers(reason=reason, workers=running)]

    def _note_loss(self, event: WorkerFailed | WorkerExited) -> list[Action]:
        """A further worker is gone after the service has ended: the first cause stays the cause."""
        member = self._members[event.worker]
        member.phase = "lost"
        member.has_exited |= isinstance(event, WorkerExited)
        return []

    def _ignore(self, event: Event) -> list[Action]:
        return []

    # -------------------------------------------------------------------------------- the insides

    def _missed_deadline(self, member: Member, now_s: float) -> str:
        """Return which deadline the worker has missed, in words; empty when none."""
        deadlines = self._deadlines
        if member.phase == "starting" and now_s - self._phase_since_s > deadlines.join_timeout_s:
            return f"did not join within {deadlines.join_timeout_s:g} s"
        if member.phase == "measuring" and now_s - member.measured_since_s > deadlines.measure_timeout_s:
            return f"was not done measuring its {self._measured_what} within {deadlines.measure_timeout_s:g} s"
        if member.phase == "loading" and now_s - self._phase_since_s > deadlines.load_timeout_s:
            return f"did not load its layers within {deadlines.load_timeout_s:g} s ({member.load_fraction:.0%} done)"
        # Measuring and loading may keep a worker too busy to beat.
        beats = member.phase in ("joined", "ready", "standby")
        if beats and now_s - member.heard_s > deadlines.heartbeat_timeout_s:
            return f"was silent for more than {deadlines.heartbeat_timeout_s:g} s"
        return ""

    def _lose(self, name: str, cause: str, now_s: float) -> list[Action]:
        """End the service, unless nothing ran on this worker."""
        member = self._members[name]
        before, member.phase = member.phase, "lost"
        if before == "lost":  # it stood by, and further news of its end came
            return []
        if before == "standby":
            self._lost_spares.append(f"worker {name}, on standby, {cause}")
            self._story.append(f"{now_s:.3f} {self._lost_spares[-1]}")
            return []
        return self._fail(f"worker {name} {cause}", now_s)

    def _fail(self, reason: str, now_s: float) -> list[Action]:
        was_serving = self._phase == "ready"
        self._enter("failed", now_s, reason)
        stop: list[Action] = [StopServing(reason=reason)] if was_serving else []
        return [*stop, FailRequests(reason=reason)]

    def _enter(self, phase: ClusterPhase, now_s: float, detail: str = "") -> None:
        self._phase, self._phase_since_s, self._detail = phase, now_s, detail
        self._story.append(f"{now_s:.3f} -> {phase}" + (f": {detail}" if detail else ""))

    def _in_phase(self, phase: WorkerPhase) -> list[Member]:
        return [member for member in self._members.values() if member.phase == phase]

    def _nodes(self) -> tuple[NodeSpec, ...]:
        return tuple(m.node for m in self._members.values() if m.node is not None)

    def _names(self) -> str:
        return ", ".join(self._members)

    def _illegal(self, event: Event, why: str) -> IllegalTransitionError:
        story = "\n  ".join(self._story)
        return IllegalTransitionError(f"{event.describe()} {why}. The story so far:\n  {story}")


_Handler = Callable[[ClusterState, Any], list[Action]]  # Any: each handler takes its own kind of event

_ALWAYS: Mapping[type[Event], _Handler] = {
    WorkerBeat: ClusterState._beat,
    WorkerFailed: ClusterState._failed,
    WorkerExited: ClusterState._exited,
    Ticked: ClusterState._ticked,
    StopRequested: ClusterState._stop,
}
_AFTER_THE_END: Mapping[type[Event], _Handler] = {
    WorkerJoined: ClusterState._ignore,
    MeasuringProgressed: ClusterState._ignore,
    ClusterMeasured: ClusterState._ignore,
    WorkerLoadProgressed: ClusterState._ignore,
    WorkerLoaded: ClusterState._ignore,
    WorkerBeat: ClusterState._beat,
    WorkerFailed: ClusterState._note_loss,
    WorkerExited: ClusterState._note_loss,
    PlanMade: ClusterState._ignore,
    PlanRefused: ClusterState._ignore,
}

_TRANSITIONS: Mapping[ClusterPhase, Mapping[type[Event], _Handler]] = {
    "starting": {
        **_ALWAYS,
        WorkerJoined: ClusterState._joined,
    },
    "measuring": {
        **_ALWAYS,
        MeasuringProgressed: ClusterState._measuring_progressed,
        ClusterMeasured: ClusterState._measured,
        PlanMade: ClusterState._plan_made,
        PlanRefused: ClusterState._plan_refused,
    },
    "loading": {
        **_ALWAYS,
        WorkerLoadProgressed: ClusterState._load_progressed,
        WorkerLoaded: ClusterState._loaded,
    },
    "ready": _ALWAYS,
    "failed": {**_AFTER_THE_END, Ticked: ClusterState._ping, StopRequested: ClusterState._stop},
    "stopping": {**_AFTER_THE_END, Ticked: ClusterState._ignore, StopRequested: ClusterState._ignore},
}
