"""The cluster's stories until it serves, and what holds in every phase: events in, actions out, no cluster needed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from butterfly.cluster import (
    ClusterState,
    Event,
    FailRequests,
    ForgetWorker,
    IllegalTransitionError,
    LoadStages,
    MakePlan,
    MeasureCluster,
    PingWorkers,
    PlanMade,
    PlanRefused,
    ShutDownWorkers,
    StartServing,
    StopRequested,
    StopServing,
    Ticked,
    WorkerExited,
    WorkerFailed,
    WorkerLeft,
    WorkerLoadProgressed,
)
from tests.unit.cluster.story import (
    NAMES,
    all_joined,
    beat,
    joined,
    killed,
    loaded,
    loading,
    make_cluster,
    make_node,
    make_plan,
    measured,
    measuring,
    moving_from_w1,
    planned,
    planning,
    progressed,
    ready,
    ready_without_w1,
    starting,
    tell,
    waiting_for_w1,
)


def test_from_start_to_serving_to_the_end() -> None:
    state = starting()
    assert (state.phase, state.epoch, state.detail) == ("starting", 0, "waiting for w0, w1, w2 to join")
    assert state.handle(joined("w1")) == []
    assert state.handle(joined("w0")) == []
    assert state.detail == "waiting for w2 to join"
    nodes = tuple(make_node(name) for name in NAMES)
    assert state.handle(joined("w2")) == [MeasureCluster(nodes=nodes)]
    assert (state.phase, state.detail) == ("measuring", "measuring w0, w1, w2")
    assert state.handle(progressed("w0", "w1")) == []
    assert state.detail == "measuring compute: w0, w1"
    assert [worker.phase for worker in state.snapshot()] == ["measuring", "measuring", "joined"]
    assert state.handle(progressed("w2", what="links")) == []
    assert state.detail == "measuring links: w2"
    assert state.cluster is None
    assert state.handle(measured()) == [MakePlan(cluster=make_cluster())]
    assert (state.phase, state.detail) == ("measuring", "making a plan")
    assert state.cluster == make_cluster()
    plan = make_plan()
    assert state.handle(PlanMade(now_s=2.0, plan=plan)) == [LoadStages(plan=plan, epoch=1)]
    state.handle(WorkerLoadProgressed(now_s=2.5, worker="w1", loaded_bytes=10, total_bytes=40))
    assert (state.phase, state.epoch, state.plan) == ("loading", 1, plan)
    assert state.detail == "loading: w0 0%, w1 25%, w2 0%"
    assert tell(state, loaded("w0"), loaded("w2")) == []
    assert state.handle(loaded("w1")) == [StartServing(epoch=1)]
    assert (state.phase, state.detail, state.recovery) == ("ready", "", None)
    assert state.handle(StopRequested(now_s=4.0)) == [
        StopServing(reason="the server is stopping"),
        FailRequests(reason="the server is stopping"),
        ShutDownWorkers(reason="the server is stopping", workers=NAMES),
    ]
    assert state.phase == "stopping"
    assert state.handle(StopRequested(now_s=5.0)) == []


Loss = tuple[Event, str]
LOSSES: dict[str, Loss] = {
    "killed": (
        WorkerExited(now_s=4.0, worker="w1", returncode=-9),
        "worker w1 was killed by signal 9",
    ),
    "exited": (
        WorkerExited(now_s=4.0, worker="w1", returncode=3, detail="no such device"),
        "worker w1 exited with code 3: no such device",
    ),
    "failed": (
        WorkerFailed(now_s=4.0, worker="w1", reason="bad tensor"),
        "worker w1 failed: bad tensor",
    ),
    "out of memory": (
        WorkerFailed(now_s=4.0, worker="w1", reason="40 MB wanted", out_of_memory=True),
        "worker w1 ran out of memory: 40 MB wanted",
    ),
    "left": (
        WorkerLeft(now_s=4.0, worker="w1", reason="terminated"),
        "worker w1 left: terminated",
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("make_state", [starting, measuring, planning, loading])
def test_a_worker_lost_before_the_first_ready_ends_the_start_by_name(
    make_state: Callable[[], ClusterState], loss: Loss
) -> None:
    state = make_state()
    event, reason = loss
    assert state.handle(event) == [ForgetWorker(worker="w1"), FailRequests(reason=reason)]
    assert (state.phase, state.detail) == ("failed", reason)
    assert [worker.phase == "lost" for worker in state.snapshot()] == [False, True, False]
    later = state.handle(Ticked(now_s=100.0))
    assert all(isinstance(action, PingWorkers) for action in later), "no process is started again"


@pytest.mark.parametrize(
    ("make_state", "last_quiet_s", "reason"),
    [
        (lambda: starting(), 60.0, "worker w0 did not join within 60 s"),
        (lambda: measuring(), 121.2, "worker w0 was not done measuring its compute within 120 s"),
        (lambda: loading(2.0), 602.0, "worker w0 did not load its layers within 600 s (0% done)"),
        (lambda: ready(3.0), 6.0, "worker w0 was silent for more than 3 s"),
    ],
    ids=["join", "measure", "load", "heartbeat"],
)
def test_every_deadline_names_its_worker(
    make_state: Callable[[], ClusterState], last_quiet_s: float, reason: str
) -> None:
    state = make_state()
    state.handle(beat("w2", last_quiet_s - 1.0))
    assert ForgetWorker(worker="w0") not in state.handle(Ticked(now_s=last_quiet_s))
    assert ForgetWorker(worker="w0") in state.handle(Ticked(now_s=last_quiet_s + 0.01))
    assert state.detail.startswith(reason)
    assert ForgetWorker(worker="w0") not in state.handle(Ticked(now_s=last_quiet_s + 0.02))


def test_only_the_silent_worker_is_named() -> None:
    state = ready(3.0)
    tell(state, beat("w0", 12.0), beat("w2", 12.0), Ticked(now_s=12.5))
    assert state.detail.startswith("worker w1 was silent for more than 3 s: ")


def test_a_worker_that_joined_must_beat_while_it_waits_for_the_others() -> None:
    state = starting()
    tell(state, joined("w2", now_s=1.0), beat("w2", 9.0), Ticked(now_s=12.0))
    assert state.phase == "starting"
    state.handle(Ticked(now_s=12.1))
    assert state.detail == "worker w2 was silent for more than 3 s"


def test_a_worker_that_loads_may_be_silent_but_one_that_has_loaded_may_not() -> None:
    state = loading(2.0)
    tell(state, loaded("w1", 3.0), Ticked(now_s=6.0))
    assert state.phase == "loading"
    state.handle(Ticked(now_s=6.1))
    assert state.detail == "worker w1 was silent for more than 3 s"


def test_whose_turn_it_is_to_be_measured_has_a_deadline_of_its_own() -> None:
    state = measuring()
    tell(state, beat("w2", 100.0), progressed("w1", "w2", now_s=100.0))  # w0 is done, and beats from now on
    tell(state, beat("w0", 121.0), Ticked(now_s=121.2))
    assert state.phase == "measuring"
    state.handle(Ticked(now_s=121.3))
    assert state.detail == "worker w1 was not done measuring its compute within 120 s"


def test_measuring_something_else_begins_anew() -> None:
    state = measuring()
    state.handle(progressed("w0", what="links", now_s=100.0))
    tell(state, beat("w1", 219.0), beat("w2", 219.0), Ticked(now_s=220.0))
    assert state.phase == "measuring"
    state.handle(Ticked(now_s=220.1))
    assert state.detail == "worker w0 was not done measuring its links within 120 s"


def test_a_worker_that_waits_to_be_measured_must_beat() -> None:
    state = measuring()
    state.handle(Ticked(now_s=4.1))
    assert state.detail == "worker w2 was silent for more than 3 s"


class TestAWorkerThatThePlanLeftOut:
    def test_stands_by_holds_nothing_and_is_not_waited_for(self) -> None:
        state = planning()
        plan = make_plan(("w2", "w0"))
        assert state.handle(PlanMade(now_s=2.0, plan=plan)) == [LoadStages(plan=plan, epoch=1)]
        assert state.detail == "loading: w0 0%, w2 0%"
        assert state.handle(loaded("w2")) == []
        assert state.handle(loaded("w0")) == [StartServing(epoch=1)]
        spare = state.snapshot()[1]
        assert (spare.phase, spare.start, spare.end, spare.weight_bytes) == ("standby", 0, 0, 0)
        assert state.detail == ""

    def test_is_pinged_and_shut_down_like_the_others(self) -> None:
        state = ready_without_w1()
        assert state.handle(Ticked(now_s=5.0)) == [PingWorkers(epoch=1, workers=NAMES)]
        (*_, shut_down) = state.handle(StopRequested(now_s=6.0, reason="bye"))
        assert shut_down == ShutDownWorkers(reason="bye", workers=NAMES)

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
    def test_may_be_lost_which_is_only_noted(self, loss: Loss) -> None:
        state = ready_without_w1()
        event, reason = loss
        noted = reason.replace("w1", "w1, on standby,")
        assert state.handle(event) == [ForgetWorker(worker="w1")]
        assert (state.phase, state.detail) == ("ready", noted)
        assert noted in state.story[-1]
        assert [worker.phase for worker in state.snapshot()] == ["ready", "lost", "ready"]
        assert state.handle(WorkerFailed(now_s=4.5, worker="w1", reason="again")) == []
        assert state.detail == noted  # the first cause stays the cause
        assert state.handle(Ticked(now_s=4.9)) == [PingWorkers(epoch=1, workers=("w0", "w2"))]

    def test_may_be_lost_while_the_others_load(self) -> None:
        state = planning()
        tell(state, planned(("w2", "w0")), WorkerExited(now_s=2.5, worker="w1", returncode=1), loaded("w0"))
        assert state.handle(loaded("w2")) == [StartServing(epoch=1)]
        assert state.detail == "worker w1, on standby, exited with code 1"

    def test_must_beat_and_its_silence_hides_nobody_elses(self) -> None:
        state = ready_without_w1()
        tell(state, beat("w0", 6.0), beat("w2", 4.0), Ticked(now_s=6.5))
        assert (state.phase, state.detail) == ("ready", "worker w1, on standby, was silent for more than 3 s")
        tell(state, beat("w0", 7.0), Ticked(now_s=7.5))
        assert state.detail == "worker w2 was silent for more than 3 s: making a plan for w0"


def test_a_refused_plan_fails_with_the_planners_reason() -> None:
    state = planning()
    assert state.handle(PlanRefused(now_s=2.0, reason="3 workers but 2 layers")) == [
        FailRequests(reason="3 workers but 2 layers")
    ]
    assert (state.phase, state.detail) == ("failed", "3 workers but 2 layers")


def test_after_the_end_the_first_cause_stays_the_cause_and_survivors_are_kept() -> None:
    state = loading()
    state.handle(killed())
    assert state.handle(WorkerFailed(now_s=4.1, worker="w0", reason="its neighbour is gone")) == []
    assert state.detail == "worker w1 was killed by signal 9"
    assert tell(state, joined("w1", now_s=4.2), measured(now_s=4.2), planned(now_s=4.2), loaded("w2")) == []
    assert state.handle(Ticked(now_s=5.0)) == [PingWorkers(epoch=1, workers=("w2",))]
    (*_, shut_down) = state.handle(StopRequested(now_s=6.0, reason="interrupted"))
    assert shut_down == ShutDownWorkers(reason="interrupted", workers=("w2",))


def test_workers_are_pinged_once_per_interval_from_their_join_on() -> None:
    state = starting()
    assert state.handle(Ticked(now_s=5.0)) == []
    state.handle(joined("w1", 5.0))
    assert state.handle(Ticked(now_s=5.1)) == [PingWorkers(epoch=0, workers=("w1",))]
    assert state.handle(Ticked(now_s=6.0)) == []
    assert state.handle(Ticked(now_s=6.1)) == [PingWorkers(epoch=0, workers=("w1",))]


def test_the_snapshot_tells_plan_and_heartbeat_of_each_worker() -> None:
    state = ready()
    state.handle(beat("w2", 4.0))
    last = state.snapshot()[-1]
    assert (last.name, last.phase, last.start, last.end, last.embedding, last.head) == (
        "w2", "ready", 2, 3, False, True,
    )  # fmt: skip
    assert (last.host, last.pid, last.memory_bytes, last.weight_bytes) == ("h", 7, 100, 42)
    assert (last.resident_bytes, last.kv_used_bytes, last.load_fraction) == (55, 6, 1.0)


@pytest.mark.parametrize(
    ("make_state", "event", "why"),
    [
        (starting, loaded("w0"), "cannot happen while starting"),
        (starting, measured(), "cannot happen while starting"),
        (starting, planned(), "cannot happen while starting"),
        (starting, joined("w9"), "names an unknown worker; known are w0, w1, w2"),
        (measuring, planned(), "nobody asked for a plan"),
        (measuring, progressed("w0", "w9"), "names an unknown worker; known are w0, w1, w2"),
        (measuring, measured(names=("w0", "w1")), "with nodes"),
        (planning, measured(), "with nodes"),
        (loading, PlanRefused(now_s=1.0, reason="no"), "nobody asked for a plan"),
        (ready, loaded("w0"), "cannot happen while ready"),
        (ready, planned(), "nobody asked for a plan"),
        (moving_from_w1, planned(("w0",)), "nobody asked for a plan"),
        (moving_from_w1, measured(), "with nodes"),
        (waiting_for_w1, planned(("w0",)), "nobody asked for a plan"),
        (ready, joined("w9"), "names an unknown worker; known are w0, w1, w2"),
    ],
)
def test_what_cannot_happen_raises_with_the_story(
    make_state: Callable[[], ClusterState], event: Event, why: str
) -> None:
    state = make_state()
    phase = state.phase
    with pytest.raises(IllegalTransitionError, match=why) as caught:
        state.handle(event)
    assert "waiting for w0, w1, w2" in str(caught.value)
    assert state.phase == phase


@pytest.mark.parametrize("names", [("w0", "w9"), ("w0", "w0"), ()])
def test_a_plan_must_use_the_workers_each_once_at_most(names: tuple[str, ...]) -> None:
    state = planning()
    with pytest.raises(IllegalTransitionError, match="with stages on"):
        state.handle(planned(names))


def test_loading_twice_is_illegal() -> None:
    state = loading()
    state.handle(loaded("w0"))
    with pytest.raises(IllegalTransitionError, match="w0 is ready"):
        state.handle(loaded("w0"))


def test_a_worker_joins_under_the_name_of_its_node() -> None:
    event = joined("w0")
    with pytest.raises(IllegalTransitionError, match="its node is called w0"):
        starting().handle(type(event)(now_s=1.0, worker="w1", node=event.node))


def test_joining_again_before_anything_was_asked_changes_nothing() -> None:
    state = starting()
    tell(state, joined("w0"), joined("w1"), joined("w0", now_s=2.0))
    assert (state.phase, state.detail) == ("starting", "waiting for w2 to join")


def test_a_worker_started_anew_while_it_loads_for_the_first_time_ends_the_start() -> None:
    state = loading()
    assert state.handle(joined("w0")) == [FailRequests(reason="worker w0 was started anew")]
    assert state.phase == "failed"


def test_nobody_to_wait_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="no worker is expected"):
        ClusterState((), now_s=0.0)


def test_the_story_is_bounded() -> None:
    state = ready()
    state.handle(WorkerExited(now_s=4.0, worker="w1", returncode=1))
    for i in range(200):
        state.handle(WorkerFailed(now_s=5.0 + i, worker="w0", reason="again"))
    assert len(state.story) == 40


def test_all_joined_means_all_that_were_expected() -> None:
    assert all_joined().phase == "measuring"


def test_one_that_dies_unseen_while_it_measures_is_not_waited_for_so_long() -> None:
    state = starting(busy_timeout_s=20.0)
    for name in NAMES:
        state.handle(joined(name))
    tell(state, progressed("w0", now_s=1.0), beat("w1", 19.0), beat("w2", 19.0), Ticked(now_s=20.9))
    assert state.phase == "measuring"
    state.handle(Ticked(now_s=21.1))
    assert state.detail == "worker w0 was silent for more than 20 s"
