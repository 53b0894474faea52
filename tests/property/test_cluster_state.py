"""Whatever happens to whom, in whatever order and however late: the service goes on, or says why and waits."""

from __future__ import annotations

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from butterfly.cluster import (
    DrainRequested,
    MeasuringProgressed,
    StopRequested,
    Ticked,
    WorkerFailed,
    WorkerLeft,
    WorkerLoadProgressed,
)
from tests.support.cluster_world import ClusterWorld

LAUNCHED = ("w0", "w1", "w2")
OTHERS = ("n0", "n1")
names = st.sampled_from(LAUNCHED + OTHERS)
causes = st.sampled_from(["exit", "exit", "fail", "leave", "hang"])
_ENDED = ("failed", "stopping")


class ClusterStories(RuleBasedStateMachine):
    """Rules are what may happen to a coordinator; the world carries out what the state says, and checks it."""

    @initialize(
        num_launched=st.integers(0, 3), needed=st.integers(1, 3), is_open=st.booleans(), is_eager=st.booleans(),
        begins_well=st.booleans(),
    )  # fmt: skip
    def begin(self, num_launched: int, needed: int, is_open: bool, is_eager: bool, begins_well: bool) -> None:
        launched = LAUNCHED[:num_launched]
        self.world = ClusterWorld(launched, needed, is_open=is_open or not launched, is_eager=is_eager)
        self.state = self.world.state
        self.phases = {self.state.phase}
        if begins_well:
            for name in launched:
                self.world.join(name)
            self.world.answer_everything()

    # -------------------------------------------------------------------------- who comes and goes

    @rule(several=st.lists(names, min_size=1, max_size=3, unique=True), last_epoch=st.sampled_from([0, 0, 0, 7]))
    def somebody_joins(self, several: list[str], last_epoch: int) -> None:
        for name in several:
            if self.may_join(name):
                self.world.join(name, last_epoch)

    def may_join(self, name: str) -> bool:
        """Ours join once they run; others as they please, but not while they are there."""
        process = self.world.processes.get(name)
        if name in self.world.launched:
            return process is not None and process.runs and not process.is_connected
        return self.world.is_open and (process is None or not process.is_connected)

    @precondition(lambda self: self.world.names(is_connected=True))
    @rule(data=st.data())
    def somebody_starts_anew_unseen(self, data: st.DataObject) -> None:
        self.world.join(data.draw(st.sampled_from(self.world.names(is_connected=True))))

    @precondition(lambda self: self.world.names(is_connected=True))
    @rule(data=st.data(), cause=causes)
    def somebody_is_lost(self, data: st.DataObject, cause: str) -> None:
        name, now_s = data.draw(st.sampled_from(self.world.names(is_connected=True))), self.world.now_s
        event(f"{cause} while {self.state.phase}")
        if cause == "hang":
            self.world.processes[name].is_hung = True
        elif cause == "exit":
            self.world.end(name)
        elif cause == "fail":
            self.world.tell(WorkerFailed(now_s=now_s, worker=name, reason="broken"))
        else:
            self.world.tell(WorkerLeft(now_s=now_s, worker=name, reason="told to"))

    @rule(name=names)
    def a_process_that_nobody_hears_ends(self, name: str) -> None:
        process = self.world.processes.get(name)
        if process is not None and process.runs and not process.is_connected:
            self.world.end(name)

    @rule(name=names)
    def somebody_is_drained(self, name: str) -> None:
        drained = DrainRequested(now_s=self.world.now_s, worker=name)
        is_there = any(w.name == name and w.phase not in ("lost", "starting") for w in self.state.snapshot())
        if is_there or self.state.phase == "stopping":
            self.world.tell(drained)
        else:
            with pytest.raises(ValueError, match=f"no worker {name} is there"):
                self.state.handle(drained)

    # ---------------------------------------------------------------------------------- answers

    @precondition(lambda self: self.world.plan_questions)
    @rule(taste=st.sampled_from([0.0, 0.01, 1.0]))
    def the_planner_answers(self, taste: float) -> None:
        self.world.taste = taste
        self.world.answer_plan()

    @precondition(lambda self: self.world.can_measure())
    @rule(is_done=st.booleans())
    def measuring_goes_on(self, is_done: bool) -> None:
        if is_done:
            self.world.answer_measurement()
        elif self.world.measurement is not None:
            first = self.world.measurement.nodes[0].name
            self.world.tell(MeasuringProgressed(now_s=self.world.now_s, workers=(first,), what="compute"))

    @precondition(lambda self: self.world.stale_measurements)
    @rule()
    def a_measurement_is_answered_too_late(self) -> None:
        self.world.answer_stale_measurement()

    @precondition(lambda self: self.world.loads)
    @rule(index=st.integers(0, 5))
    def a_stage_is_loaded(self, index: int) -> None:
        self.world.answer_load(index)

    @precondition(lambda self: self.state.phase in ("loading", "moving"))
    @rule(name=names)
    def loading_goes_on(self, name: str) -> None:
        if any(worker.name == name and worker.phase == "loading" for worker in self.state.snapshot()):
            now_s = self.world.now_s
            self.world.tell(WorkerLoadProgressed(now_s=now_s, worker=name, loaded_bytes=1, total_bytes=2))

    @rule()
    def everything_is_answered(self) -> None:
        self.world.answer_everything()

    @rule(seconds=st.sampled_from([0.2, 1.0, 5.0, 40.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(seconds=st.sampled_from([200.0, 700.0]))
    def the_machine_sleeps(self, seconds: float) -> None:
        """All deadlines pass at once."""
        self.world.now_s += seconds
        self.world.tell(Ticked(now_s=self.world.now_s))

    @rule(chance=st.integers(0, 9))
    def somebody_stops_it(self, chance: int) -> None:
        if chance == 0:
            self.world.tell(StopRequested(now_s=self.world.now_s))

    # ------------------------------------------------------------------------------- what holds

    @invariant()
    def it_says_what_it_does(self) -> None:
        if not hasattr(self, "world"):
            return
        state, snapshot = self.state, self.state.snapshot()
        self.phases.add(state.phase)
        assert self.world.serves == (state.phase == "ready")
        assert self.world.holds == (state.phase == "moving")
        assert state.phase == "ready" or state.detail
        assert "\n" not in state.detail
        assert state.epoch == self.world.epoch
        assert len({worker.name for worker in snapshot}) == len(snapshot)
        assert state.phase != "failed" or not self.world.is_open
        if state.phase == "ready":
            assert state.plan is not None
            planned = {stage.worker for stage in state.plan.stages}
            assert planned <= {worker.name for worker in snapshot if worker.phase == "ready"}
        if not self.world.is_asked:
            self.nothing_is_left_to_do()

    def nothing_is_left_to_do(self) -> None:
        """Nobody owes an answer: so nobody is forgotten, and nothing is served only where nothing can be."""
        state = self.state
        assert state.phase not in ("measuring", "loading", "moving"), "nobody works at it"
        if state.phase == "ready":
            forgotten = [worker for worker in state.snapshot() if worker.phase in ("joined", "measuring")]
            assert not forgotten
        if state.phase == "waiting":
            there = {worker.name for worker in state.snapshot() if worker.phase not in ("lost", "starting")}
            assert len(there - self.world.drained) < self.world.needed

    def teardown(self) -> None:
        """Now all goes well: whoever may come comes and stays, and every question is answered."""
        if not hasattr(self, "world"):
            return
        world, state = self.world, self.state
        world.taste = 1.0
        for process in world.processes.values():
            process.is_hung = False
        has_waited = "waiting" in self.phases
        for _ in range(30):
            if state.phase in _ENDED:
                break
            for name, process in list(world.processes.items()):
                if name in world.launched and process.runs and not process.is_connected and state.phase != "starting":
                    world.end(name)  # nobody hears it any more, so it ends
            for name in LAUNCHED + OTHERS:
                if self.may_join(name) and name not in world.drained:
                    world.join(name)
            world.answer_everything()
            world.pass_time(2.0 if state.phase == "ready" else 5.0)
        event(f"ended {state.phase}, has waited: {has_waited}")
        if state.phase in _ENDED:
            return
        there = [worker.name for worker in state.snapshot() if worker.phase not in ("lost", "starting")]
        able = [name for name in there if name not in world.drained]
        if len(able) >= world.needed:
            assert state.phase == "ready", (state.phase, state.detail, state.story)
        else:
            assert state.phase in ("waiting", "starting"), state.detail


TestClusterStories = ClusterStories.TestCase
TestClusterStories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
