"""Events about who is there: joining, beating, leaving, being lost, being asked to leave; and the passing of time."""

from __future__ import annotations

from butterfly.cluster.actions import (
    Action,
    FailRequests,
    ForgetWorker,
    PingWorkers,
    RestartWorker,
    ShutDownWorkers,
    StopServing,
)
from butterfly.cluster.decisions import go_on, react, take_offer
from butterfly.cluster.events import (
    DrainRequested,
    StopRequested,
    Ticked,
    WorkerBeat,
    WorkerExited,
    WorkerFailed,
    WorkerJoined,
    WorkerLeft,
)
from butterfly.cluster.facts import Facts
from butterfly.cluster.members import Member


def joined(facts: Facts, event: WorkerJoined) -> list[Action]:
    """One that is connected already is the same node started anew. Its connection is new: there is none to close."""
    if event.node.name != event.worker:
        raise facts.illegal(event, f"but its node is called {event.node.name}")
    facts.newest_epoch_heard = max(facts.newest_epoch_heard, event.last_epoch)
    before = facts.roster.get(event.worker)
    losses = []
    if before is not None and before.is_connected and facts.phase != "starting":
        losses.append(facts.lose(before, "was started anew", event.now_s))
    facts.roster.join(event)
    if facts.phase == "starting" and not any(m.is_launched for m in facts.roster.in_phase("starting")):
        facts.enter("measuring", event.now_s)
    return react(facts, losses, event.now_s)


def beat(facts: Facts, event: WorkerBeat) -> list[Action]:
    member = facts.roster[event.worker]
    if member.is_connected:
        member.beat(event)
    return []


def failed(facts: Facts, event: WorkerFailed) -> list[Action]:
    cause = "ran out of memory: " if event.out_of_memory else "failed: "
    return _lose(facts, event.worker, cause + event.reason, event.now_s)


def left(facts: Facts, event: WorkerLeft) -> list[Action]:
    return _lose(facts, event.worker, f"left: {event.reason}", event.now_s)


def exited(facts: Facts, event: WorkerExited) -> list[Action]:
    member = facts.roster[event.worker]
    actions = _lose(facts, event.worker, event.cause, event.now_s)
    if facts.has_served and member.is_launched:  # before, it would end again for the same reason
        member.plan_restart(event.now_s, facts.deadlines)
    return actions


def _lose(facts: Facts, name: str, cause: str, now_s: float) -> list[Action]:
    member = facts.roster[name]
    if member.phase == "lost":  # further news of its end
        return []
    loss = facts.lose(member, cause, now_s)
    return [ForgetWorker(worker=name), *react(facts, [loss], now_s)]


def note_loss(facts: Facts, event: WorkerFailed | WorkerLeft | WorkerExited) -> list[Action]:
    """A further worker is gone after the service has ended: the first cause stays the cause."""
    facts.roster[event.worker].phase = "lost"
    return []


def drain(facts: Facts, event: DrainRequested) -> list[Action]:
    """Raises ValueError when the worker is not there."""
    name, now_s = event.worker, event.now_s
    if name not in facts.roster.connected:
        known = ", ".join(facts.roster.connected) or "nobody"
        raise ValueError(f"no worker {name} is there that could be drained; there are: {known}")
    if facts.roster[name].is_leaving:
        return []
    facts.drains.request(name)
    holds_nothing = facts.phase == "ready" and name not in facts.planned
    if holds_nothing or facts.phase in ("waiting", "failed"):
        return [facts.let_go(name, now_s), *go_on(facts, now_s)]
    if facts.phase == "ready":
        facts.stop_measuring(now_s)  # newcomers come after it
    return go_on(facts, now_s)


def ticked(facts: Facts, event: Ticked) -> list[Action]:
    now_s, facts.refill_s = event.now_s, event.refill_s
    losses = []
    for member in facts.roster:
        if cause := member.missed_deadline(now_s, facts.deadlines, facts.measured_what):
            losses.append(facts.lose(member, cause, now_s, _last_sign_s(member)))
    facts.roster.remove_long_lost(now_s, facts.deadlines)
    serves = facts.phase in ("ready", "moving")
    restarted = [m for m in facts.roster if m.is_due_to_restart(now_s, facts.deadlines, others_serve=serves)]
    for member in restarted:
        member.restart(now_s)
    return [
        *(ForgetWorker(worker=loss.name) for loss in losses),
        *(RestartWorker(worker=member.name) for member in restarted),
        *ping(facts, event),
        *(react(facts, losses, now_s) if losses else take_offer(facts, now_s)),
    ]


def _last_sign_s(member: Member) -> float:
    return member.started_s if member.phase == "starting" else member.heard_s


def ping(facts: Facts, event: Ticked) -> list[Action]:
    alive = facts.roster.connected
    if not alive or event.now_s - facts.pinged_s < facts.deadlines.ping_interval_s:
        return []
    facts.pinged_s = event.now_s
    return [PingWorkers(epoch=facts.epoch, workers=alive)]


def stop(facts: Facts, event: StopRequested) -> list[Action]:
    was_serving = facts.phase in ("ready", "moving")
    reason = event.reason or "the server is stopping"
    facts.enter("stopping", event.now_s, reason)
    first: list[Action] = [StopServing(reason=reason)] if was_serving else []
    return [*first, FailRequests(reason=reason), ShutDownWorkers(reason=reason, workers=facts.roster.connected)]
