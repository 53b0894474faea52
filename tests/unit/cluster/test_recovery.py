"""What happens when a worker is lost while it serves, and when it comes back."""

from __future__ import annotations

import pytest

from butterfly.cluster import (
    ClusterState,
    DrainRequested,
    Event,
    FailRequests,
    ForgetWorker,
    HoldRequests,
    LoadStages,
    MakePlan,
    MeasureCluster,
    MeasuringProgressed,
    PlanRefused,
    Recovery,
    RestartWorker,
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
from butterfly.specs import ClusterSpec
from tests.unit.cluster.story import (
    KILLED,
    beat,
    joined,
    killed,
    live,
    loaded,
    make_cluster,
    make_node,
    make_plan,
    measured,
    moving_from_w1,
    planned,
    planning,
    progressed,
    ready,
    ready_alone,
    ready_without_w1,
    starting,
    tell,
    waiting_for_w1,
)

REST = ("w0", "w2")


def test_from_a_loss_to_serving_on() -> None:
    state = ready()
    assert state.handle(killed(now_s=4.0)) == [
        ForgetWorker(worker="w1"),
        HoldRequests(reason=KILLED),
        MakePlan(cluster=make_cluster(REST)),
    ]
    assert (state.phase, state.detail) == ("moving", f"{KILLED}: making a plan for w0 and w2")
    plan = make_plan(REST)
    assert state.handle(planned(REST, now_s=4.5)) == [LoadStages(plan=plan, epoch=2)]
    assert state.detail == f"{KILLED}: moving to w0 and w2, 0% loaded"
    state.handle(WorkerLoadProgressed(now_s=4.6, worker="w0", loaded_bytes=20, total_bytes=40))
    assert state.detail == f"{KILLED}: moving to w0 and w2, 25% loaded"
    assert state.handle(loaded("w2", 5.0)) == []
    assert state.handle(loaded("w0", 5.5)) == [StartServing(epoch=2)]
    assert (state.phase, state.detail, state.plan) == ("ready", KILLED, plan)
    assert [worker.phase for worker in state.snapshot()] == ["ready", "lost", "ready"]
    assert state.recovery == Recovery(cause=KILLED, lost_s=4.0, noticed_s=4.0, planned_s=4.5, loaded_s=5.5)


LOSSES: dict[str, tuple[Event, str]] = {
    "failed": (WorkerFailed(now_s=4.0, worker="w1", reason="bad tensor"), "worker w1 failed: bad tensor"),
    "left": (WorkerLeft(now_s=4.0, worker="w1", reason="terminated"), "worker w1 left: terminated"),
    "started anew": (joined("w1", 4.0), "worker w1 was started anew"),
}


@pytest.mark.parametrize(("loss", "reason"), LOSSES.values(), ids=LOSSES.keys())
def test_every_loss_holds_the_requests(loss: Event, reason: str) -> None:
    state = ready()
    actions = state.handle(loss)
    assert actions[-2:] == [HoldRequests(reason=reason), MakePlan(cluster=make_cluster(REST))]
    is_new_process = reason.endswith("anew")
    assert (ForgetWorker(worker="w1") in actions) != is_new_process, "the connection of a new process is wanted"


def test_silence_is_counted_from_the_last_word() -> None:
    state = ready()
    tell(state, beat("w1", 5.0), beat("w0", 8.0), beat("w2", 8.0))
    actions = state.handle(Ticked(now_s=8.2))
    reason = "worker w1 was silent for more than 3 s"
    assert [a for a in actions if isinstance(a, HoldRequests)] == [HoldRequests(reason=reason)]
    assert state.recovery == Recovery(cause=reason, lost_s=5.0, noticed_s=8.2)


def test_several_that_fall_silent_together_are_one_move() -> None:
    state = ready()
    tell(state, beat("w2", 8.0))
    actions = state.handle(Ticked(now_s=8.2))
    reason = "worker w0 was silent for more than 3 s; worker w1 was silent for more than 3 s"
    assert actions[-2:] == [HoldRequests(reason=reason), MakePlan(cluster=make_cluster(("w2",)))]


class TestAnotherLossOnTheWay:
    def test_of_one_in_the_new_plan_makes_another_plan(self) -> None:
        state = moving_from_w1()
        assert state.handle(killed("w2", 5.0)) == [ForgetWorker(worker="w2"), MakePlan(cluster=make_cluster(("w0",)))]
        both = f"{KILLED}; worker w2 was killed by signal 9"
        assert state.detail == f"{both}: making a plan for w0"
        assert state.handle(planned(("w0",), 5.5)) == [LoadStages(plan=make_plan(("w0",)), epoch=3)]
        assert state.handle(loaded("w0", 6.0)) == [StartServing(epoch=3)]
        assert state.recovery == Recovery(cause=both, lost_s=4.0, noticed_s=4.0, planned_s=5.5, loaded_s=6.0)

    def test_before_the_plan_came_overtakes_it(self) -> None:
        state = ready()
        state.handle(killed("w1", 4.0))
        assert state.handle(killed("w2", 4.1))[-1] == MakePlan(cluster=make_cluster(("w0",)))
        assert state.handle(planned(REST)) == [], "the answer to the first question"
        assert state.handle(planned(("w0",))) == [LoadStages(plan=make_plan(("w0",)), epoch=2)]

    def test_of_one_that_the_new_plan_leaves_out_is_noted(self) -> None:
        state = ready()
        tell(state, killed(), planned(("w0",), 4.5))
        assert state.handle(killed("w2", 4.6)) == [ForgetWorker(worker="w2")]
        assert state.handle(loaded("w0")) == [StartServing(epoch=2)]
        assert state.detail == f"{KILLED}; worker w2, on standby, was killed by signal 9"

    def test_of_the_last_one_ends_the_requests(self) -> None:
        state = moving_from_w1()
        state.handle(killed("w2", 5.0))
        others = "worker w2 was killed by signal 9; worker w0 was killed by signal 9"
        reason = f"{KILLED}; {others}, and no other worker is there"
        assert state.handle(killed("w0", 5.1)) == [
            ForgetWorker(worker="w0"),
            StopServing(reason=reason),
            FailRequests(reason=reason),
        ]
        assert (state.phase, state.detail) == ("waiting", reason)

    def test_stages_of_the_plan_before_may_finish_loading_meanwhile(self) -> None:
        state = moving_from_w1()
        state.handle(killed("w2", 5.0))
        assert state.handle(loaded("w0", 5.1)) == []
        assert state.handle(planned(("w0",), 5.2)) == [LoadStages(plan=make_plan(("w0",)), epoch=3)]
        assert state.phase == "moving"


def test_stopping_while_moving_ends_what_is_held() -> None:
    state = moving_from_w1()
    assert state.handle(StopRequested(now_s=5.0, reason="bye")) == [
        StopServing(reason="bye"),
        FailRequests(reason="bye"),
        ShutDownWorkers(reason="bye", workers=REST),
    ]


class TestWhenNothingFits:
    reason = f"{KILLED}, and no plan fits the workers that are left: 40 bytes are missing"

    def test_requests_end_with_who_was_lost_and_what_would_fit(self) -> None:
        state = ready()
        state.handle(killed())
        assert state.handle(PlanRefused(now_s=4.5, reason="40 bytes are missing")) == [
            StopServing(reason=self.reason),
            FailRequests(reason=self.reason),
        ]
        assert (state.phase, state.detail, state.plan) == ("waiting", self.reason, None)
        assert [worker.phase for worker in state.snapshot()] == ["standby", "lost", "standby"]

    def test_it_serves_again_when_workers_come(self) -> None:
        state = waiting_for_w1()
        assert state.handle(joined("w1", 9.0)) == [MeasureCluster(nodes=(make_node("w1"),), known=make_cluster(REST))]
        assert state.detail == f"{self.reason}; measuring w1"
        back = make_cluster(("w0", "w1", "w2"))
        (ask,) = state.handle(measured(9.5))
        assert isinstance(ask, MakePlan)
        assert ask.cluster.nodes == back.nodes
        assert set(ask.cluster.links) == set(back.links)
        assert state.handle(planned(now_s=9.6)) == [LoadStages(plan=make_plan(), epoch=2)]
        assert state.phase == "loading"
        assert tell(state, loaded("w0"), loaded("w1"), loaded("w2")) == [StartServing(epoch=2)]
        assert (state.phase, state.detail) == ("ready", "")

    def test_it_asks_with_each_newcomer_and_tells_the_last_answer(self) -> None:
        state = ready(is_open=True)
        tell(state, killed(), PlanRefused(now_s=4.5, reason="40 bytes are missing"))
        tell(state, joined("n0", 5.0), joined("n1", 5.1))
        (ask,) = state.handle(measured(5.2, ("w0", "w2", "n0")))
        assert isinstance(ask, MakePlan)
        actions = state.handle(PlanRefused(now_s=5.3, reason="20 bytes are missing"))
        assert [type(action) for action in actions] == [MeasureCluster], "of who came meanwhile"
        assert (
            state.detail == f"{KILLED}, and no plan fits the workers that are left: 20 bytes are missing; measuring n1"
        )

    def test_late_words_of_those_that_were_loading_are_no_surprise(self) -> None:
        state = moving_from_w1()
        tell(state, killed("w2", 5.0), PlanRefused(now_s=5.1, reason="no room"))
        progress = WorkerLoadProgressed(now_s=5.2, worker="w0", loaded_bytes=1, total_bytes=2)
        assert tell(state, progress, loaded("w0", 5.3)) == []
        assert state.phase == "waiting"

    def test_a_loss_while_loading_after_it_is_waited_out_as_well(self) -> None:
        state = waiting_for_w1()
        tell(state, joined("w1", 9.0), measured(9.5), planned(now_s=9.6))
        assert state.handle(killed("w2", 10.0)) == [
            ForgetWorker(worker="w2"),
            MakePlan(cluster=_cluster_of(state)),
        ]
        assert [node.name for node in _cluster_of(state).nodes] == ["w0", "w1"]
        assert (state.phase, state.detail) == ("waiting", "worker w2 was killed by signal 9; making a plan")
        assert state.handle(planned(("w0", "w1"), 10.1)) == [LoadStages(plan=make_plan(("w0", "w1")), epoch=3)]


def _cluster_of(state: ClusterState) -> ClusterSpec:
    assert state.cluster is not None
    return state.cluster


class TestNewcomersInNeed:
    """Somebody has just joined, and without that one nothing fits any more: requests are held until it is measured."""

    ALL = (*REST, "n0")

    def held(self) -> ClusterState:
        state = ready(is_open=True)
        tell(state, joined("n0", 3.9), killed(), PlanRefused(now_s=4.5, reason="40 bytes are missing"))
        assert (state.phase, state.detail) == ("moving", f"{KILLED}; measuring n0")
        return state

    def test_one_saves_the_requests(self) -> None:
        state = self.held()
        (ask,) = state.handle(measured(6.0, self.ALL))
        assert isinstance(ask, MakePlan)
        assert state.handle(planned(self.ALL, 6.1)) == [LoadStages(plan=make_plan(self.ALL), epoch=2)]
        assert tell(state, *(loaded(name, 7.0) for name in self.ALL)) == [StartServing(epoch=2)]

    def test_one_that_does_not_suffice_ends_them(self) -> None:
        state = self.held()
        state.handle(measured(6.0, self.ALL))
        actions = state.handle(PlanRefused(now_s=6.1, reason="20 bytes are missing"))
        assert [type(action) for action in actions] == [StopServing, FailRequests]
        assert state.phase == "waiting"

    def test_one_that_is_lost_before_it_is_measured_ends_them(self) -> None:
        state = self.held()
        ask = state.handle(killed("n0", 5.0))[-1]
        assert isinstance(ask, MakePlan)
        assert [node.name for node in ask.cluster.nodes] == list(REST)
        actions = state.handle(PlanRefused(now_s=5.1, reason="40 bytes are missing"))
        assert [type(action) for action in actions] == [StopServing, FailRequests]

    def test_one_takes_the_place_of_the_only_worker(self) -> None:
        state = ready_alone()
        state.handle(joined("n0", 3.9))
        ask = state.handle(killed("w0", 4.0))[-1]
        assert ask == MeasureCluster(nodes=(make_node("n0"),), known=make_cluster(()))
        assert state.phase == "moving"
        (plan,) = state.handle(measured(5.0, ("n0",)))
        assert isinstance(plan, MakePlan)


class TestRestarting:
    def test_a_worker_that_we_started_is_started_again_after_a_pause(self) -> None:
        state = moving_from_w1()  # w1 ended at 4.0
        tell(state, loaded("w0", 4.8), loaded("w2", 4.8))
        tell(state, beat("w0", 8.0), beat("w2", 8.0))
        assert RestartWorker(worker="w1") not in state.handle(Ticked(now_s=8.9))
        assert RestartWorker(worker="w1") in state.handle(Ticked(now_s=9.0))
        assert RestartWorker(worker="w1") not in state.handle(Ticked(now_s=9.1))
        assert [worker.phase for worker in state.snapshot()] == ["ready", "starting", "ready"]
        (ask,) = state.handle(joined("w1", 10.0))
        assert ask == MeasureCluster(nodes=(make_node("w1"),), known=make_cluster(REST))
        assert [worker.name for worker in state.snapshot()] == ["w0", "w1", "w2"]

    def test_it_is_started_again_sooner_where_nothing_runs_without_it(self) -> None:
        state = waiting_for_w1()
        lost_s = 4.0
        tell(state, beat("w0", lost_s + 1), beat("w2", lost_s + 1))
        assert RestartWorker(worker="w1") not in state.handle(Ticked(now_s=lost_s + 0.9))
        assert RestartWorker(worker="w1") in state.handle(Ticked(now_s=lost_s + 1.0))

    def test_pauses_double_up_to_a_longest(self) -> None:
        state = moving_from_w1()
        tell(state, loaded("w0", 4.8), loaded("w2", 4.8))
        now_s, pauses = 4.0, []
        for _ in range(7):
            ended_s = now_s
            while RestartWorker(worker="w1") not in tell(
                state, beat("w0", now_s), beat("w2", now_s), Ticked(now_s=now_s)
            ):
                now_s += 0.5
            pauses.append(now_s - ended_s)
            state.handle(killed(now_s=now_s))
        assert pauses == [5, 5, 5, 8, 16, 30, 30]

    @pytest.mark.parametrize(("useful_s", "pause_s"), [(50.0, 8.0), (61.0, 5.0)])
    def test_a_minute_of_good_work_is_forgiven(self, useful_s: float, pause_s: float) -> None:
        state = moving_from_w1()
        tell(state, loaded("w0", 4.8), loaded("w2", 4.8))
        end_s = 4.0
        for good_work_s in (0.0, 0.0, useful_s):  # after pauses of 1, 2 and 4 s, were it not for the others' prefill
            tell(state, beat("w0", end_s + 5.0), beat("w2", end_s + 5.0), Ticked(now_s=end_s + 5.0))
            tell(state, joined("w1", end_s + 6.0), measured(end_s + 6.0), planned(now_s=end_s + 6.0, cost_s=0.4))
            assert state.snapshot()[1].phase == "standby"
            end_s += 6.0 + good_work_s
            tell(state, *(beat(name, end_s) for name in ("w0", "w1", "w2")), killed(now_s=end_s))
        tell(state, beat("w0", end_s + pause_s), beat("w2", end_s + pause_s))
        assert RestartWorker(worker="w1") not in state.handle(Ticked(now_s=end_s + pause_s - 0.1))
        assert RestartWorker(worker="w1") in state.handle(Ticked(now_s=end_s + pause_s))

    def test_one_that_does_not_join_is_lost_again_but_only_its_end_restarts_it(self) -> None:
        state = moving_from_w1()
        tell(state, loaded("w0", 4.8), loaded("w2", 4.8))
        tell(state, beat("w0", 9.0), beat("w2", 9.0), Ticked(now_s=9.0))
        actions = live(state, 70.0, REST)
        assert actions == [ForgetWorker(worker="w1")]
        assert state.detail == "worker w1 did not join within 60 s"
        state.handle(killed(now_s=70.0))
        assert RestartWorker(worker="w1") in live(state, 80.0, REST)

    def test_one_that_joined_from_elsewhere_is_not_ours_to_start(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), killed("n0", 4.1))
        assert live(state, 50.0, ("w0", "w1", "w2")) == []


def test_a_lost_worker_goes_out_of_sight_after_a_while() -> None:
    state = ready(is_open=True)
    tell(state, joined("n0", 4.0), WorkerLeft(now_s=4.5, worker="n0", reason="done"))
    assert state.detail == "worker n0 left: done"
    live(state, 604.0, ("w0", "w1", "w2"))
    assert [worker.name for worker in state.snapshot()] == ["w0", "w1", "w2", "n0"]
    live(state, 605.0, ("w0", "w1", "w2"))
    assert [worker.name for worker in state.snapshot()] == ["w0", "w1", "w2"]
    assert state.detail == ""
    assert state.handle(beat("n0", 606.0)) == [], "late words of somebody who is forgotten"
    state.handle(joined("n0", 607.0))
    assert [worker.phase for worker in state.snapshot()] == ["ready", "ready", "ready", "joined"]


def test_one_that_we_started_stays_in_sight() -> None:
    state = ready_without_w1()
    state.handle(WorkerLeft(now_s=4.0, worker="w1", reason="done"))
    live(state, 5000.0, REST)
    assert [worker.phase for worker in state.snapshot()] == ["ready", "lost", "ready"]


def test_measuring_is_given_up_in_a_move_and_taken_up_after_it() -> None:
    state = ready(is_open=True)
    tell(state, joined("n0", 4.0), progressed("n0", now_s=4.0))
    assert [worker.phase for worker in state.snapshot()][-1] == "measuring"
    assert state.handle(killed(now_s=4.1))[-1] == MakePlan(cluster=make_cluster(REST))
    assert [worker.phase for worker in state.snapshot()][-1] == "joined"
    late = MeasuringProgressed(now_s=4.2, workers=("n0",), what="links")
    assert tell(state, late, measured(4.2, ("w0", "w1", "w2", "n0"))) == [], "late words of the measurement"
    tell(state, planned(REST, 4.5), loaded("w0", 5.0))
    assert state.handle(loaded("w2", 5.0)) == [
        StartServing(epoch=2),
        MeasureCluster(nodes=(make_node("n0"),), known=make_cluster(REST)),
    ]


def test_the_epoch_rises_above_any_that_a_worker_has_heard_of() -> None:
    state = ready(is_open=True)
    state.handle(joined("n0", 4.0, last_epoch=41))
    assert state.epoch == 1, "what is served now is not touched"
    state.handle(killed(now_s=4.1))
    assert state.handle(planned(REST, 4.5)) == [LoadStages(plan=make_plan(REST), epoch=42)]


def test_a_drain_under_way_waits_when_somebody_is_lost() -> None:
    """Whoever was to leave may be needed now."""
    state = ready()
    tell(state, DrainRequested(now_s=4.0, worker="w0"), planned(("w1", "w2"), 4.0))
    assert state.handle(killed(now_s=4.5))[-1] == MakePlan(cluster=make_cluster(REST))
    tell(state, planned(REST, 4.6), loaded("w0", 5.0))
    assert state.handle(loaded("w2", 5.0)) == [
        StartServing(epoch=3),
        MakePlan(cluster=make_cluster(REST), exclude=("w0",)),
    ]
    assert state.handle(PlanRefused(now_s=5.1, reason="no room")) == []
    assert state.drain_refusal("w0") == "w0 cannot leave: without it, no room"


def test_before_the_first_ready_others_that_may_join_are_waited_for() -> None:
    state = starting(is_open=True)
    tell(state, joined("w0"))
    actions = state.handle(killed(now_s=2.0))
    assert actions == [ForgetWorker(worker="w1"), MeasureCluster(nodes=(make_node("w0"),))]
    assert (state.phase, state.detail) == ("waiting", f"{KILLED}; measuring w0")
    state = planning(is_open=True)
    assert state.handle(PlanRefused(now_s=2.0, reason="no room")) == []
    assert (state.phase, state.detail) == ("waiting", "no room")
    assert RestartWorker(worker="w1") not in tell(state, WorkerExited(now_s=3.0, worker="w1", returncode=1), *(
        Ticked(now_s=float(second)) for second in range(4, 40)
    ))  # fmt: skip
