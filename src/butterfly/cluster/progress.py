"""Events that answer what was asked: measurements, plans, and stages that load."""

from __future__ import annotations

from msgspec.structs import replace

from butterfly.cluster import wording
from butterfly.cluster.actions import Action, MakePlan, StartServing
from butterfly.cluster.decisions import give_up, go_on, grow, move
from butterfly.cluster.events import (
    ClusterMeasured,
    MeasuringProgressed,
    PlanMade,
    PlanRefused,
    WorkerLoaded,
    WorkerLoadProgressed,
)
from butterfly.cluster.facts import Facts


def measuring_progressed(facts: Facts, event: MeasuringProgressed) -> list[Action]:
    for name in event.workers:
        if name not in facts.roster and not facts.roster.is_former(name):
            raise facts.illegal(event, f"names an unknown worker; known are {wording.listed(facts.roster.names)}")
    for member in facts.roster:
        is_at_it = member.name in event.workers and facts.questions.is_measured(member.name)
        was_at_it = member.phase == "measuring"
        if is_at_it and not (was_at_it and event.what == facts.measured_what):
            member.start_measuring(event.now_s)
        elif was_at_it and not is_at_it:
            member.finish_measuring(event.now_s)
    facts.measured_what = event.what
    return []


def measured(facts: Facts, event: ClusterMeasured) -> list[Action]:
    nodes = [node.name for node in event.cluster.nodes]
    try:
        asked = facts.questions.answer_measurement(set(nodes))
    except LookupError:
        raise facts.illegal(event, f"with nodes {nodes}, which nobody asked for") from None
    if asked is None:
        return []
    facts.measured.add(event.cluster)
    facts.finish_measuring(event.now_s)
    facts.wants_plan = True
    return go_on(facts, event.now_s)


def plan_made(facts: Facts, event: PlanMade) -> list[Action]:
    plan, now_s = event.plan, event.now_s
    asked = _answered(facts, event)
    if asked is None:
        return []
    workers = [stage.worker for stage in plan.stages]
    usable = [node.name for node in asked.cluster.nodes if node.name not in asked.exclude]
    if not workers or len(set(workers)) < len(workers) or not set(workers) <= set(usable):
        raise facts.illegal(event, f"with stages on {workers}, but the workers are {wording.listed(usable)}")
    if facts.phase != "ready":
        if facts.phase != "moving":
            facts.enter("loading", now_s)
        return [facts.load(plan, now_s)]
    if not asked.exclude:
        return grow(facts, plan, now_s)
    (leaving,) = asked.exclude
    facts.drains.agree(leaving)
    return move(facts, plan, f"worker {leaving} is to leave", now_s)


def plan_refused(facts: Facts, event: PlanRefused) -> list[Action]:
    asked = _answered(facts, event)
    if asked is None:
        return []
    if facts.phase == "moving" and facts.unmeasured:  # requests are held a little longer, for who may save them
        facts.wants_plan = True
        return [facts.ask_for_measurement()]
    if facts.phase != "ready":
        return give_up(facts, wording.nothing_fits(facts.cause, event.reason), event.now_s)
    others = [node.name for node in asked.cluster.nodes if node.name not in asked.exclude]
    newcomers = [node.name for node in facts.unmeasured]
    for name in asked.exclude:
        facts.drains.refuse(name, wording.cannot_leave(name, others, newcomers, event.reason))
    return go_on(facts, event.now_s)


def _answered(facts: Facts, event: PlanMade | PlanRefused) -> MakePlan | None:
    try:
        return facts.questions.answer_plan()
    except LookupError:
        raise facts.illegal(event, "though nobody asked for a plan") from None


def load_progressed(facts: Facts, event: WorkerLoadProgressed) -> list[Action]:
    member = facts.roster[event.worker]
    if member.phase == "loading":
        member.heard_s = event.now_s
        member.load_fraction = event.loaded_bytes / event.total_bytes if event.total_bytes else 1.0
    return []


def loaded(facts: Facts, event: WorkerLoaded) -> list[Action]:
    member = facts.roster[event.worker]
    if member.phase == "lost":
        return []
    if member.phase != "loading":
        raise facts.illegal(event, f"but {event.worker} is {member.phase}")
    member.finish_loading(event)
    if facts.is_planning or facts.roster.in_phase("loading"):
        return []
    return _serve(facts, event.now_s)


def _serve(facts: Facts, now_s: float) -> list[Action]:
    facts.enter("ready", now_s)
    facts.has_served, facts.cause = True, ""
    for member in facts.roster:
        member.be_useful(now_s)
    if facts.recovery is not None and facts.recovery.loaded_s is None:
        facts.recovery = replace(facts.recovery, loaded_s=now_s)
    leaving = facts.drains.agreed
    let_go = [facts.let_go(leaving, now_s)] if leaving else []
    return [StartServing(epoch=facts.epoch), *let_go, *go_on(facts, now_s)]
