"""One line for people: why the cluster is not ready, or what is worth knowing though it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from butterfly.cluster.actions import MakePlan
from butterfly.cluster.members import Member
from butterfly.cluster.questions import Questions
from butterfly.cluster.roster import Roster
from butterfly.specs import Plan


def joining(roster: Roster) -> str:
    return f"waiting for {listed(m.name for m in roster.in_phase('starting'))} to join"


def asking(roster: Roster, questions: Questions, measured_what: str) -> str:
    """What a measurement or a plan is being waited for; empty when none is."""
    if questions.pending is None:
        return ""
    if isinstance(questions.pending, MakePlan):
        return "making a plan"
    at_it = listed(member.name for member in roster.in_phase("measuring"))
    asked = listed(node.name for node in questions.pending.nodes)
    return f"measuring {measured_what}: {at_it}" if at_it else f"measuring {asked}"


def loading(roster: Roster) -> str:
    return "loading: " + listed(f"{m.name} {m.load_fraction:.0%}" for m in roster.in_phase("loading"))


def moving(reason: str, roster: Roster, plan: Plan | None) -> str:
    """`plan` is where to; None: not known yet."""
    if plan is None:
        return f"{reason}: making a plan for {_joined(roster.connected)}"
    workers = [stage.worker for stage in plan.stages]
    return f"{reason}: moving to {_joined(workers)}, {_loaded_share(plan, roster):.0%} loaded"


def lost(member: Member, cause: str) -> str:
    is_spare = member.phase == "standby"
    return f"worker {member.name}, on standby, {cause}" if is_spare else f"worker {member.name} {cause}"


def nothing_fits(cause: str, refusal: str) -> str:
    return f"{cause}, and no plan fits the workers that are left: {refusal}" if cause else refusal


def cannot_leave(name: str, others: Sequence[str], newcomers: Sequence[str], refusal: str) -> str:
    """`newcomers` have joined and are not measured yet; without `others`, `refusal` says nothing of use."""
    if others:
        return f"{name} cannot leave: without it, {refusal}"
    if newcomers:
        return f"{name} cannot leave before {_joined(newcomers)} has been measured: ask again when that is done"
    return f"{name} is the only worker: another must join before it can leave"


def stands_by(newcomers: Iterable[str], plan: Plan, present: Plan) -> str:
    return (
        f"{_joined(tuple(newcomers))} on standby: the plan without is as good "
        f"({present.cost_s:.4g} s, and {plan.cost_s:.4g} s with)"
    )


def helps(newcomers: Iterable[str], plan: Plan, present: Plan) -> str:
    names = _joined(tuple(newcomers)) or "a new measurement"
    return f"a plan with {names} costs {plan.cost_s:.4g} s instead of {present.cost_s:.4g} s"


def waits_for_its_moment(reason: str) -> str:
    return f"{reason}; the cluster moves when nothing runs, or when waiting has cost what the move would"


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _joined(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part) if names else ""


def _loaded_share(plan: Plan, roster: Roster) -> float:
    members = [(stage, roster.get(stage.worker)) for stage in plan.stages]
    total = sum(stage.weight_bytes for stage, _ in members)
    done = sum(stage.weight_bytes * member.load_fraction for stage, member in members if member is not None)
    return done / total if total else 1.0
