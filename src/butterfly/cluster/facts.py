"""What the cluster state knows, and how each thing that it knows changes. What to do about it is decided in `state`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from butterfly.cluster import wording
from butterfly.cluster.actions import LoadStages, MakePlan, MeasureCluster, ShutDownWorkers
from butterfly.cluster.drains import Drains
from butterfly.cluster.events import Event
from butterfly.cluster.measured import MeasuredCluster
from butterfly.cluster.members import Deadlines, Member
from butterfly.cluster.offer import Offer
from butterfly.cluster.questions import Questions
from butterfly.cluster.roster import Roster
from butterfly.specs import ClusterPhase, ClusterSpec, NodeSpec, Plan, Recovery

_STORY_LENGTH = 40  # events that an error can tell of


class IllegalTransitionError(RuntimeError):
    """An event that cannot happen now: a bug of the caller. The message ends with the story so far."""


class Loss(NamedTuple):
    """A worker that is lost."""

    name: str
    words: str  # which worker, and why
    had_stage: bool  # of the plan in force, or being loaded
    was_launched: bool
    gone_s: float  # when it ended, or was last heard of


class Facts:
    """Times are on the clock of the events."""

    def __init__(self, launched: Sequence[str], now_s: float, deadlines: Deadlines, *, is_open: bool) -> None:
        self.deadlines = deadlines
        self.is_open = is_open  # others may join
        self.roster = Roster(launched, now_s)
        self.measured = MeasuredCluster()
        self.questions = Questions()
        self.drains = Drains()
        self.phase: ClusterPhase = "starting" if launched else "waiting"
        self.reason = ""  # of the phase, in words
        self.cause = ""  # who was lost, and how, since it was ready
        self.epoch = 0
        self.newest_epoch_heard = 0  # under whichever coordinator
        self.plan: Plan | None = None  # in force, or being loaded
        self.wants_plan = False  # the workers are not those of the last plan that was asked for
        self.has_served = False
        self.recovery: Recovery | None = None
        self.offer: Offer | None = None  # a better plan that is not worth its pause yet
        self.refill_s = 0.0  # as the last tick said
        self.measured_what = ""  # of the workers in the phase `measuring`
        self.note = ""  # about newcomers that the plan goes without
        self.pinged_s = now_s
        expected = wording.listed(launched) or "anybody"
        self.story: deque[str] = deque([f"{now_s:.3f} waiting for {expected}"], maxlen=_STORY_LENGTH)

    # ---------------------------------------------------------------------------------- questions

    @property
    def cluster(self) -> ClusterSpec:
        """As measured: the workers that are there and measured."""
        return self.measured.spec(self.roster.names)

    @property
    def unmeasured(self) -> tuple[NodeSpec, ...]:
        """Workers that joined and wait for their measurement."""
        waiting = [m for m in self.roster if m.is_connected and not m.is_leaving and m.name not in self.measured]
        return tuple(member.node for member in waiting if member.node is not None)

    @property
    def planned(self) -> tuple[str, ...]:
        """Who has a stage."""
        return tuple(stage.worker for stage in self.plan.stages) if self.plan else ()

    @property
    def is_planning(self) -> bool:
        return self.wants_plan or isinstance(self.questions.pending, MakePlan)

    @property
    def detail(self) -> str:
        asking = wording.asking(self.roster, self.questions, self.measured_what)
        if self.phase == "starting":
            return wording.joining(self.roster)
        if self.phase == "measuring":
            return asking
        if self.phase == "loading":
            return wording.loading(self.roster)
        if self.phase == "moving" and isinstance(self.questions.pending, MeasureCluster):
            return f"{self.reason}; {asking}"
        if self.phase == "moving":
            return wording.moving(self.reason, self.roster, None if self.is_planning else self.plan)
        if self.phase == "ready":
            return "; ".join(part for part in (*self.roster.losses, self.note, asking) if part)
        return "; ".join(part for part in (self.reason, asking) if part) or "no worker has joined yet"

    # ------------------------------------------------------------------------------------ changes

    def enter(self, phase: ClusterPhase, now_s: float, reason: str = "") -> None:
        self.phase, self.reason = phase, reason
        self.story.append(f"{now_s:.3f} -> {phase}" + (f": {reason}" if reason else ""))

    def lose(self, member: Member, cause: str, now_s: float, gone_s: float | None = None) -> Loss:
        """A worker is gone, and what was asked about it too. `gone_s`: since when, if not only now."""
        name = member.name
        loss = Loss(
            name=name,
            words=wording.lost(member, cause),
            had_stage=name in self.planned and member.phase in ("loading", "ready"),
            was_launched=member.is_launched,
            gone_s=now_s if gone_s is None else gone_s,
        )
        if member.phase == "standby":
            self.note = ""
        if self.drains.wants(name):
            member.is_launched = False  # it was to leave: do not start it again
        member.lose(loss.words, now_s, self.deadlines)
        self.story.append(f"{now_s:.3f} {loss.words}")
        self.forget_measurement(name, now_s)
        self.drains.settle(name)
        if member.is_leaving:
            self.roster.remove(name)
        return loss

    def forget_measurement(self, name: str, now_s: float) -> None:
        """No plan may use this worker any more, not even one that is being made."""
        self.measured.remove(name)
        if self.offer is not None and self.offer.needs(name):
            self.offer, self.wants_plan = None, True
        if self.questions.involves(name):
            self.drop_question(now_s)

    def drop_question(self, now_s: float) -> None:
        """Whoever was being measured is measured from the start, later; a plan is asked for again."""
        asked = self.questions.pending
        # One that was to tell whether somebody may leave is asked for again because that one stays in line.
        self.wants_plan |= isinstance(asked, MakePlan) and not asked.exclude
        self.questions.drop()
        self.finish_measuring(now_s)

    def stop_measuring(self, now_s: float) -> None:
        if isinstance(self.questions.pending, MeasureCluster):
            self.drop_question(now_s)

    def finish_measuring(self, now_s: float) -> None:
        for member in self.roster.in_phase("measuring"):
            member.finish_measuring(now_s)

    def ask_for_measurement(self) -> MeasureCluster:
        question = MeasureCluster(nodes=self.unmeasured, known=self.cluster)
        self.questions.ask(question)
        return question

    def ask_for_plan(self, exclude: tuple[str, ...] = ()) -> MakePlan:
        question = MakePlan(cluster=self.cluster, exclude=exclude)
        self.questions.ask(question)
        self.wants_plan &= bool(exclude)  # if that one may not leave, newcomers have still to be thought of
        return question

    def load(self, plan: Plan, now_s: float) -> LoadStages:
        """The plan is what counts from now on."""
        self.plan, self.wants_plan, self.note, self.offer = plan, False, "", None
        self.epoch = max(self.epoch, self.newest_epoch_heard) + 1
        for member in self.roster:
            if member.name in self.planned:
                member.start_loading(now_s)
            elif member.name in self.measured:
                member.stand_by(now_s)
        if self.recovery is not None and self.recovery.loaded_s is None:
            self.recovery = replace(self.recovery, planned_s=now_s)
        return LoadStages(plan=plan, epoch=self.epoch)

    def let_go(self, name: str, now_s: float) -> ShutDownWorkers:
        """A worker that holds nothing that is needed may leave."""
        member = self.roster[name]
        member.stand_by(now_s)
        member.is_leaving, member.is_launched = True, False
        self.forget_measurement(name, now_s)
        self.drains.settle(name)
        return ShutDownWorkers(reason="it was drained", workers=(name,))

    def note_recovery(self, losses: Sequence[Loss], now_s: float) -> None:
        """Begin the books of a move, or note that further workers were lost in it."""
        cause = "; ".join(loss.words for loss in losses)
        if self.phase == "ready":
            self.recovery = Recovery(cause=cause, lost_s=min(loss.gone_s for loss in losses), noticed_s=now_s)
        elif self.recovery is not None and self.recovery.loaded_s is None:
            self.recovery = replace(self.recovery, cause=f"{self.recovery.cause}; {cause}", planned_s=None)

    def illegal(self, event: Event, why: str) -> IllegalTransitionError:
        story = "\n  ".join(self.story)
        return IllegalTransitionError(f"{event.describe()} {why}. The story so far:\n  {story}")
