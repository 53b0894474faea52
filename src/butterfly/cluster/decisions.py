"""What to do about what is known: which question to ask next, what follows from a loss, whether a plan is worth a move.

Every list of actions has at most one that is answered at once, and it stands last.
"""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.cluster import wording
from butterfly.cluster.actions import Action, FailRequests, HoldRequests, StopServing
from butterfly.cluster.facts import Facts, Loss
from butterfly.cluster.offer import Offer
from butterfly.specs import Plan, Recovery

# Predictions are not exact to a few per cent: less than this share of the present plan's cost is not worth a move.
WORTH_A_MOVE = 0.05


def go_on(facts: Facts, now_s: float) -> list[Action]:
    """Ask what is to be asked next, if anything: one question at a time."""
    if facts.phase not in ("measuring", "ready", "moving", "waiting") or facts.questions.pending is not None:
        return []
    if facts.phase == "ready":
        return _go_on_while_ready(facts, now_s)
    if facts.wants_plan and facts.measured:
        return [facts.ask_for_plan()]
    if facts.phase == "moving" and not facts.wants_plan:  # newcomers wait until it is ready again
        return []
    if facts.unmeasured:
        return [facts.ask_for_measurement()]
    return give_up(facts, f"{facts.cause}, and no other worker is there", now_s) if facts.phase == "moving" else []


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
    """Move to a plan that newcomers were thought of in, when that pays; until then, or for good, they stand by."""
    present, before = facts.plan, facts.offer
    assert present is not None
    facts.offer = None
    spares = [member for member in facts.roster.in_phase("joined") if member.name in facts.measured]
    for member in spares:
        member.stand_by(now_s)
        member.be_useful(now_s)
    if plan.cost_s < present.cost_s * (1 - WORTH_A_MOVE):
        newcomers = [stage.worker for stage in plan.stages if stage.worker not in facts.planned]
        reason, gain = wording.helps(newcomers, plan, present), 1 - plan.cost_s / present.cost_s
        facts.offer = Offer(plan, reason, gain, now_s, before.waited_s if before else 0.0)
        facts.note = wording.waits_for_its_moment(reason)
        return take_offer(facts, now_s) or go_on(facts, now_s)
    if spares:
        facts.note = wording.stands_by([member.name for member in spares], plan, present)
    return go_on(facts, now_s)


def take_offer(facts: Facts, now_s: float) -> list[Action]:
    """Move to the better plan that waits, if there is one and its moment has come."""
    offer = facts.offer
    if facts.phase != "ready" or offer is None or not offer.is_due(facts.refill_s, now_s):
        return []
    return [] if facts.questions.pending is not None else move(facts, offer.plan, offer.reason, now_s)


def give_up(facts: Facts, reason: str, now_s: float) -> list[Action]:
    """Nothing can run now: end what runs, and wait for other workers, unless none is to come."""
    was_serving = facts.phase in ("ready", "moving")
    fail: list[Action] = [StopServing(reason=reason), FailRequests(reason=reason)] if was_serving else []
    if not facts.is_open and not facts.has_served:
        facts.enter("failed", now_s, reason)
        return [FailRequests(reason=reason)]
    facts.plan = facts.offer = None
    for member in facts.roster:
        if member.is_connected and member.name in facts.measured:
            member.stand_by(now_s)
    facts.enter("waiting", now_s, reason)
    facts.drains.put_back()
    let_go = [facts.let_go(name, now_s) for name in facts.drains.line]
    return [*fail, *let_go, *go_on(facts, now_s)]
