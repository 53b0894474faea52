"""What to do about what is known: which question to ask next, what follows from a loss, whether a plan is worth a move.

Every list of actions has at most one that is answered at once, and it stands last.
"""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.cluster import wording
from butterfly.cluster.actions import Action, FailRequests, HoldRequests, StopServing
from butterfly.cluster.facts import Facts, Loss
from butterfly.specs import Plan, Recovery

# A move costs every reader a pause and every running request its prefill once more, and predictions are not exact to
# a few per cent: less than this share of the present plan's cost is not worth it.
WORTH_A_MOVE = 0.05


def go_on(facts: Facts, now_s: float) -> list[Action]:
    """Ask what is to be asked next, if anything: one question at a time."""
    if facts.phase not in ("measuring", "ready", "moving", "waiting") or facts.questions.pending is not None:
        return []
    if facts.phase == "ready":
        return _go_on_while_ready(facts, now_s)
    if facts.wants_plan and facts.measured:
        return [facts.ask_for_plan()]
    if facts.phase == "moving":  # newcomers wait until it is ready again
        return give_up(facts, f"{facts.cause}, and no other worker is there", now_s) if facts.wants_plan else []
    return [facts.ask_for_measurement()] if facts.unmeasured else []


def _go_on_while_ready(facts: Facts, now_s: float) -> list[Action]:
    """Who wants to leave comes first. Newcomers are measured together, and then planned for once."""
    idle = [name for name in facts.drains.line if name not in facts.planned]
    let_go: list[Action] = [facts.let_go(name, now_s) for name in idle]
    if facts.drains.first:
        return [*let_go, facts.ask_for_plan(exclude=(facts.drains.first,))]
    if facts.unmeasured:
        return [*let_go, facts.ask_for_measurement()]
    return [*let_go, facts.ask_for_plan()] if facts.wants_plan else let_go


def react(facts: Facts, losses: Sequence[Loss], now_s: float) -> list[Action]:
    """What follows from losses, by the phase in which they came. With none, just go on."""
    reason = "; ".join(loss.words for loss in losses)
    had_stage = any(loss.had_stage for loss in losses)
    if facts.phase in ("starting", "measuring") and any(loss.was_launched for loss in losses):
        return _lose_the_start(facts, reason, now_s)
    if had_stage:
        facts.wants_plan = True
        facts.drains.put_back()
    if facts.phase == "loading" and had_stage:
        return _lose_the_start(facts, reason, now_s)
    if facts.phase == "ready" and had_stage:
        return _recover(facts, losses, now_s)
    if facts.phase == "moving" and facts.wants_plan and losses:
        facts.note_recovery(losses, now_s)
        facts.cause = facts.reason = "; ".join(part for part in (facts.cause, reason) if part)
    if facts.phase == "waiting" and not facts.reason:
        facts.reason = reason
    return go_on(facts, now_s)


def _lose_the_start(facts: Facts, reason: str, now_s: float) -> list[Action]:
    facts.cause = reason
    return give_up(facts, reason, now_s)


def _recover(facts: Facts, losses: Sequence[Loss], now_s: float) -> list[Action]:
    facts.note_recovery(losses, now_s)
    facts.stop_measuring(now_s)
    facts.cause = "; ".join(loss.words for loss in losses)
    facts.enter("moving", now_s, facts.cause)
    return [HoldRequests(reason=facts.cause), *go_on(facts, now_s)]


def move(facts: Facts, plan: Plan, reason: str, now_s: float) -> list[Action]:
    """Go from the plan in force to another one, though nobody was lost."""
    facts.recovery = Recovery(cause=reason, lost_s=now_s, noticed_s=now_s)
    facts.enter("moving", now_s, reason)
    return [HoldRequests(reason=reason), facts.load(plan, now_s)]


def grow(facts: Facts, plan: Plan, now_s: float) -> list[Action]:
    """Move to a plan that newcomers were thought of in, where that pays; else they stand by."""
    present = facts.plan
    assert present is not None
    if plan.cost_s < present.cost_s * (1 - WORTH_A_MOVE):
        newcomers = [stage.worker for stage in plan.stages if stage.worker not in facts.planned]
        return move(facts, plan, wording.helps(newcomers, plan, present), now_s)
    spares = [member for member in facts.roster.in_phase("joined") if member.name in facts.measured]
    for member in spares:
        member.stand_by(now_s)
        member.be_useful(now_s)
    if spares:
        facts.note = wording.stands_by([member.name for member in spares], plan, present)
    return go_on(facts, now_s)


def give_up(facts: Facts, reason: str, now_s: float) -> list[Action]:
    """Nothing can run now: end what runs, and wait for other workers, unless none is to come."""
    was_serving = facts.phase in ("ready", "moving")
    fail: list[Action] = [StopServing(reason=reason), FailRequests(reason=reason)] if was_serving else []
    if not facts.is_open and not facts.has_served:
        facts.enter("failed", now_s, reason)
        return [FailRequests(reason=reason)]
    facts.plan = None
    for member in facts.roster:
        if member.is_connected and member.name in facts.measured:
            member.stand_by(now_s)
    facts.enter("waiting", now_s, reason)
    facts.drains.put_back()
    let_go = [facts.let_go(name, now_s) for name in facts.drains.line]
    return [*fail, *let_go, *go_on(facts, now_s)]
