"""Workers that come while others serve, and workers that are asked to leave."""

from __future__ import annotations

import pytest

from butterfly.cluster import (
    Action,
    ClusterState,
    DrainRequested,
    ForgetWorker,
    HoldRequests,
    LoadStages,
    MakePlan,
    MeasureCluster,
    PlanRefused,
    ShutDownWorkers,
    StartServing,
    Ticked,
    WorkerExited,
    WorkerLeft,
)
from tests.unit.cluster.story import (
    NAMES,
    beat,
    joined,
    killed,
    live,
    loaded,
    loading,
    make_cluster,
    make_node,
    make_plan,
    measured,
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

ALL = (*NAMES, "n0")


def drained(name: str, now_s: float = 4.0) -> DrainRequested:
    return DrainRequested(now_s=now_s, worker=name)


def phases(state: ClusterState) -> dict[str, str]:
    return {worker.name: worker.phase for worker in state.snapshot()}


def tick(state: ClusterState, now_s: float, refill_s: float = 0.0) -> list[Action]:
    """Everybody has just been heard of."""
    tell(state, *(beat(worker.name, now_s) for worker in state.snapshot() if worker.phase != "lost"))
    return state.handle(Ticked(now_s=now_s, refill_s=refill_s))


def moves(actions: list[Action]) -> bool:
    return any(isinstance(action, LoadStages) for action in actions)


def offered(refill_s: float) -> ClusterState:
    """A plan with n0 costs 0.3 s instead of 0.4 s, at 5 s, while requests run whose prefill takes so long."""
    state = ready(is_open=True)
    tick(state, 3.5, refill_s)
    tell(state, joined("n0", 4.0), measured(5.0, ALL))
    assert state.handle(planned(ALL, 5.0, cost_s=0.3)) == []
    return state


class TestJoiningWhileServing:
    def test_a_newcomer_that_helps_is_moved_to(self) -> None:
        state = ready(is_open=True)
        assert state.handle(joined("n0", 4.0)) == [MeasureCluster(nodes=(make_node("n0"),), known=make_cluster())]
        assert (state.phase, state.detail) == ("ready", "measuring n0")
        state.handle(progressed("n0", now_s=4.1))
        assert state.detail == "measuring compute: n0"
        (ask,) = state.handle(measured(5.0, ALL))
        assert isinstance(ask, MakePlan)
        assert ask.cluster.nodes == make_cluster(ALL).nodes
        plan = make_plan(ALL, cost_s=0.3)
        reason = "a plan with n0 costs 0.3 s instead of 0.4 s"
        assert state.handle(planned(ALL, 5.0, cost_s=0.3)) == [
            HoldRequests(reason=reason),
            LoadStages(plan=plan, epoch=2),
        ]
        assert state.detail == f"{reason}: moving to w0, w1, w2 and n0, 0% loaded"
        assert tell(state, *(loaded(name, 6.0) for name in ALL)) == [StartServing(epoch=2)]
        assert state.recovery is not None
        assert (state.recovery.noticed_s, state.recovery.planned_s, state.recovery.loaded_s) == (5.0, 5.0, 6.0)

    @pytest.mark.parametrize("cost_s", [0.381, 0.4, 0.5])
    def test_a_newcomer_that_hardly_helps_stands_by_with_the_figures(self, cost_s: float) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), measured(5.0, ALL))
        assert state.handle(planned(ALL, 5.0, cost_s=cost_s)) == []
        assert (state.phase, state.epoch, phases(state)["n0"]) == ("ready", 1, "standby")
        assert state.detail == f"n0 on standby: the plan without is as good (0.4 s, and {cost_s:g} s with)"
        state.handle(WorkerLeft(now_s=6.0, worker="n0", reason="done"))
        assert state.detail == "worker n0, on standby, left: done"

    def test_while_requests_run_a_better_plan_waits_until_waiting_has_cost_as_much_as_the_move(self) -> None:
        state = offered(refill_s=2.0)
        assert (state.phase, phases(state)["n0"]) == ("ready", "standby")
        assert state.detail.startswith("a plan with n0 costs 0.3 s instead of 0.4 s; the cluster moves when")
        quiet_s = 5.0 + 7.9  # a quarter is saved: 8 s of waiting cost 2 s
        assert [a for a in tick(state, quiet_s, refill_s=2.0) if isinstance(a, HoldRequests)] == []
        (_, load) = tick(state, quiet_s + 0.2, refill_s=2.0)[-2:]
        assert load == LoadStages(plan=make_plan(ALL, cost_s=0.3), epoch=2)

    def test_a_better_plan_is_moved_to_as_soon_as_nothing_runs(self) -> None:
        state = offered(refill_s=50.0)
        assert isinstance(tick(state, 5.4)[-1], LoadStages)
        assert state.phase == "moving"

    def test_the_longer_the_requests_the_longer_it_waits(self) -> None:
        state = offered(refill_s=2.0)
        assert not moves(tick(state, 14.0, refill_s=3.0))
        assert moves(tick(state, 17.1, refill_s=3.0))

    def test_a_newcomer_that_is_lost_takes_its_plan_along(self) -> None:
        state = offered(refill_s=2.0)
        (_, ask) = state.handle(WorkerLeft(now_s=6.0, worker="n0", reason="done"))
        assert isinstance(ask, MakePlan)
        assert [node.name for node in ask.cluster.nodes] == list(NAMES)
        assert state.handle(planned(now_s=6.1)) == []
        tick(state, 30.0)
        assert state.phase == "ready"

    def test_a_loss_meanwhile_is_planned_for_with_the_newcomer(self) -> None:
        state = offered(refill_s=2.0)
        ask = state.handle(killed(now_s=6.0))[-1]
        assert isinstance(ask, MakePlan)
        assert [node.name for node in ask.cluster.nodes] == ["w0", "w2", "n0"]
        state.handle(planned(("w0", "w2", "n0"), 6.0))
        tell(state, *(loaded(name, 7.0) for name in ("w0", "w2", "n0")))
        tick(state, 7.2)
        assert (state.phase, state.epoch) == ("ready", 2), "the plan that waited is forgotten"

    def test_one_more_newcomer_does_not_make_it_wait_from_the_start(self) -> None:
        state = offered(refill_s=2.0)
        tick(state, 11.0, refill_s=2.0)
        tell(state, joined("n1", 11.0), measured(11.5, (*ALL, "n1")))
        assert state.handle(planned((*ALL, "n1"), 11.5, cost_s=0.2)) == []
        tick(state, 12.6, refill_s=2.0)
        assert state.phase == "moving"

    def test_those_that_come_meanwhile_are_measured_next_and_planned_for_together(self) -> None:
        state = ready(is_open=True)
        state.handle(joined("n0", 4.0))
        assert tell(state, joined("n1", 4.1), joined("n2", 4.2)) == []
        nodes = (make_node("n1"), make_node("n2"))
        (ask,) = state.handle(measured(5.0, ALL))
        assert isinstance(ask, MeasureCluster)
        assert ask.nodes == nodes
        assert [node.name for node in ask.known.nodes] == list(ALL)
        (plan,) = state.handle(measured(6.0, (*ALL, "n1", "n2")))
        assert isinstance(plan, MakePlan)

    def test_one_that_is_lost_while_it_is_measured_ends_nothing(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), joined("n1", 4.1), progressed("n0", now_s=4.1))
        assert state.handle(killed("n0", 4.5)) == [
            ForgetWorker(worker="n0"),
            MeasureCluster(nodes=(make_node("n1"),), known=make_cluster()),
        ]
        assert state.phase == "ready"

    def test_one_that_misses_its_deadline_is_lost_and_nothing_else_is(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), progressed("n0", now_s=4.0))
        assert live(state, 124.0, NAMES) == []
        assert live(state, 124.5, NAMES) == [ForgetWorker(worker="n0")]
        assert (state.phase, state.detail) == (
            "ready",
            "worker n0 was not done measuring its compute within 120 s",
        )

    def test_a_spare_that_is_lost_meanwhile_has_the_newcomer_measured_without_it(self) -> None:
        state = ready_without_w1(is_open=True)
        state.handle(joined("n0", 4.0))
        (_, again) = state.handle(killed(now_s=4.2))
        assert again == MeasureCluster(nodes=(make_node("n0"),), known=make_cluster(("w0", "w2")))
        assert state.handle(measured(4.3, ALL)) == [], "the answer to the first question"

    def test_one_of_two_that_is_lost_while_a_plan_is_made_has_it_made_for_the_other(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), joined("n1", 4.0), measured(4.5, ALL), measured(5.0, (*ALL, "n1")))
        (_, again) = state.handle(killed("n1", 5.1))
        assert isinstance(again, MakePlan)
        assert [node.name for node in again.cluster.nodes] == list(ALL)
        assert state.handle(planned((*ALL, "n1"), 5.2, cost_s=0.1)) == [], "the answer to the first question"
        state.handle(planned(now_s=5.3))
        assert phases(state)["n0"] == "standby"

    def test_one_that_is_lost_while_nothing_is_served_has_the_plan_made_for_the_others(self) -> None:
        state = ready(is_open=True)
        tell(state, killed("w0"), PlanRefused(now_s=4.1, reason="no"), joined("n0", 5.0))
        tell(state, measured(5.5, ("w1", "w2", "n0")))
        (_, again) = state.handle(killed("w1", 5.6))
        assert isinstance(again, MakePlan)
        assert [node.name for node in again.cluster.nodes] == ["w2", "n0"]

    def test_one_that_fails_as_it_loads_is_left_out(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), measured(5.0, ALL), planned(ALL, 5.0, cost_s=0.3))
        assert state.handle(killed("n0", 5.5)) == [ForgetWorker(worker="n0"), MakePlan(cluster=make_cluster())]
        assert state.handle(planned(now_s=5.6)) == [LoadStages(plan=make_plan(), epoch=3)]

    def test_others_that_joined_in_time_are_part_of_the_first_plan(self) -> None:
        state = starting(is_open=True)
        tell(state, joined("n0"), joined("w0"), joined("w1"))
        (ask,) = state.handle(joined("w2"))
        assert ask == MeasureCluster(nodes=tuple(make_node(name) for name in ALL))
        assert state.handle(joined("n1", 1.2)) == [], "comes after the first plan"
        (plan,) = state.handle(measured(names=ALL))
        assert isinstance(plan, MakePlan)
        tell(state, planned())
        assert phases(state) == {"w0": "loading", "w1": "loading", "w2": "loading", "n0": "standby", "n1": "joined"}
        actions = tell(state, *map(loaded, NAMES))
        assert actions[0] == StartServing(epoch=1)
        assert isinstance(actions[1], MeasureCluster)
        assert [node.name for node in actions[1].nodes] == ["n1"]

    def test_losing_one_of_those_before_the_first_plan_ends_nothing(self) -> None:
        state = starting(is_open=True)
        tell(state, joined("n0"), *map(joined, NAMES))
        assert state.handle(killed("n0", 1.3)) == [
            ForgetWorker(worker="n0"),
            MeasureCluster(nodes=tuple(map(make_node, NAMES))),
        ]
        assert state.phase == "measuring"

    def test_a_cluster_may_begin_with_nobody(self) -> None:
        state = ClusterState((), now_s=0.0, is_open=True)
        assert (state.phase, state.detail) == ("waiting", "no worker has joined yet")
        assert state.handle(joined("n0", last_epoch=6)) == [MeasureCluster(nodes=(make_node("n0"),))]
        assert tell(state, measured(names=("n0",))) == [MakePlan(cluster=make_cluster(("n0",)))]
        assert state.handle(planned(("n0",))) == [LoadStages(plan=make_plan(("n0",)), epoch=7)]
        assert state.handle(loaded("n0")) == [StartServing(epoch=7)]
        assert state.recovery is None

    def test_a_node_that_comes_back_is_the_same_node(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), joined("n1", 4.0), killed("n0", 4.5), joined("n0", 4.8))
        assert list(phases(state)) == [*NAMES, "n0", "n1"]


class TestDraining:
    def test_the_others_take_over_before_it_ends(self) -> None:
        state = ready()
        rest = ("w0", "w2")
        assert state.handle(drained("w1")) == [MakePlan(cluster=make_cluster(), exclude=("w1",))]
        assert state.handle(planned(rest, 4.0, cost_s=0.9)) == [
            HoldRequests(reason="worker w1 is to leave"),
            LoadStages(plan=make_plan(rest, 0.9), epoch=2),
        ]
        assert tell(state, loaded("w0", 4.5), loaded("w2", 4.6)) == [
            StartServing(epoch=2),
            ShutDownWorkers(reason="it was drained", workers=("w1",)),
        ]
        assert phases(state)["w1"] == "standby"
        assert state.handle(drained("w1", 4.7)) == [], "it is told already"
        assert state.handle(WorkerLeft(now_s=5.0, worker="w1", reason="drained")) == [ForgetWorker(worker="w1")]
        assert state.handle(WorkerExited(now_s=5.1, worker="w1", returncode=0)) == []
        assert list(phases(state)) == ["w0", "w2"]
        assert live(state, 30.0, rest) == [], "it is not started again"
        assert state.detail == ""

    def test_one_that_holds_nothing_ends_at_once_and_its_silence_is_its_end(self) -> None:
        state = ready_without_w1()
        assert state.handle(drained("w1")) == [ShutDownWorkers(reason="it was drained", workers=("w1",))]
        tell(state, beat("w0", 8.0), beat("w2", 8.0), Ticked(now_s=8.1))
        assert list(phases(state)) == ["w0", "w2"]

    def test_a_refusal_can_be_read_and_changes_nothing(self) -> None:
        state = ready()
        state.handle(drained("w1"))
        assert state.drain_refusal("w1") == ""
        assert state.handle(PlanRefused(now_s=4.0, reason="20 bytes are missing")) == []
        refusal = "w1 cannot leave: without it, 20 bytes are missing"
        assert (state.phase, state.drain_refusal("w1")) == ("ready", refusal)
        assert state.drain_refusal("w0") == ""
        state.handle(drained("w1", 5.0))
        assert state.drain_refusal("w1") == "", "it is asked anew"

    def test_the_last_one_is_told_what_it_takes(self) -> None:
        state = ready_alone()
        assert tell(state, drained("w0"), PlanRefused(now_s=4.0, reason="no workers"))[1:] == []
        assert state.drain_refusal("w0") == "w0 is the only worker: another must join before it can leave"
        tell(state, joined("n0", 4.5), drained("w0", 4.6), PlanRefused(now_s=4.7, reason="no workers"))
        assert state.drain_refusal("w0") == ("w0 cannot leave before n0 has been measured: ask again when that is done")

    @pytest.mark.parametrize("name", ["w9", "w1"])
    def test_one_that_is_not_there_is_an_error_with_the_names_of_those_that_are(self, name: str) -> None:
        state = ready_without_w1()
        state.handle(killed())
        with pytest.raises(ValueError, match=f"no worker {name} is there that could be drained; there are: w0, w2"):
            state.handle(drained(name))

    def test_it_is_seen_to_when_the_cluster_is_ready(self) -> None:
        state = loading()
        assert state.handle(drained("w1", 2.5)) == []
        assert tell(state, *map(loaded, NAMES)) == [
            StartServing(epoch=1),
            MakePlan(cluster=make_cluster(), exclude=("w1",)),
        ]

    def test_two_leave_one_after_the_other(self) -> None:
        state = ready()
        tell(state, drained("w1"))
        assert state.handle(drained("w0")) == []
        tell(state, planned(("w0", "w2"), 4.0), loaded("w0", 4.5))
        assert state.handle(loaded("w2", 4.5)) == [
            StartServing(epoch=2),
            ShutDownWorkers(reason="it was drained", workers=("w1",)),
            MakePlan(cluster=make_cluster(("w0", "w2")), exclude=("w0",)),
        ]

    def test_while_a_newcomer_is_measured_it_comes_first_and_the_newcomer_is_not_forgotten(self) -> None:
        state = ready(is_open=True)
        state.handle(joined("n0", 4.0))
        assert state.handle(drained("w1", 4.1)) == [MakePlan(cluster=make_cluster(), exclude=("w1",))]
        assert state.handle(PlanRefused(now_s=4.2, reason="no")) == [
            MeasureCluster(nodes=(make_node("n0"),), known=make_cluster())
        ]

    def test_while_a_plan_is_made_for_a_newcomer_it_waits_for_that(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), measured(4.1, ALL))
        assert state.handle(drained("w1", 4.2)) == []
        (ask,) = state.handle(planned(ALL, 4.3))
        assert isinstance(ask, MakePlan)
        assert ask.exclude == ("w1",)

    def test_a_refusal_forgets_no_newcomer_that_was_measured_before_it(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), joined("n1", 4.0), measured(4.5, ALL))  # n1 is being measured now
        tell(state, drained("w1", 4.6), killed("n1", 4.7))
        (ask,) = state.handle(PlanRefused(now_s=4.8, reason="no"))
        assert isinstance(ask, MakePlan)
        assert (len(ask.cluster.nodes), ask.exclude) == (4, ())

    def test_the_newcomer_that_is_measured_goes_back_in_line(self) -> None:
        state = ready(is_open=True)
        tell(state, joined("n0", 4.0), progressed("n0", now_s=4.0), drained("w1", 4.1))
        assert phases(state)["n0"] == "joined"

    def test_where_nothing_is_served_it_ends_at_once(self) -> None:
        state = waiting_for_w1()
        assert state.handle(drained("w0")) == [ShutDownWorkers(reason="it was drained", workers=("w0",))]
        state = planning()
        state.handle(PlanRefused(now_s=2.0, reason="no"))
        assert state.phase == "failed"
        assert state.handle(drained("w0")) == [ShutDownWorkers(reason="it was drained", workers=("w0",))]

    def test_one_that_dies_while_it_waits_for_its_leave_is_not_started_again(self) -> None:
        state = ready()
        tell(state, drained("w1"), killed(now_s=4.1))
        assert state.phase == "moving"
        assert state.handle(PlanRefused(now_s=4.2, reason="late")) == [], "whether it may leave"
        tell(state, planned(("w0", "w2"), 4.2), loaded("w0", 4.3), loaded("w2", 4.3))
        assert live(state, 40.0, ("w0", "w2")) == []
