"""Whatever happens, in whatever order: phases only go forward, and nothing is served without the plan's workers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.cluster import (
    ClusterState,
    Event,
    FailRequests,
    IllegalTransitionError,
    LoadStages,
    PlanMade,
    PlanRefused,
    ShutDownWorkers,
    StartServing,
    StopRequested,
    StopServing,
    Ticked,
    WorkerBeat,
    WorkerExited,
    WorkerFailed,
    WorkerLoadProgressed,
)
from tests.unit.cluster.story import NAMES, joined, loaded, make_plan, measured, progressed

ORDER = ["starting", "measuring", "loading", "ready", "failed", "stopping"]
names = st.sampled_from(NAMES)

happy = st.one_of(
    names.map(joined),
    names.map(loaded),
    names.map(progressed),
    st.just(measured()),
    st.sampled_from([NAMES, NAMES[:2]]).map(lambda planned: PlanMade(now_s=2.0, plan=make_plan(planned))),
    names.map(lambda n: WorkerBeat(now_s=2.0, worker=n, resident_bytes=1, kv_used_bytes=1)),
    names.map(lambda n: WorkerLoadProgressed(now_s=2.0, worker=n, loaded_bytes=1, total_bytes=2)),
)
sad = st.one_of(
    names.map(lambda n: WorkerExited(now_s=3.0, worker=n, returncode=1)),
    names.map(lambda n: WorkerFailed(now_s=3.0, worker=n, reason="broken")),
    st.just(PlanRefused(now_s=2.0, reason="no room")),
    st.just(StopRequested(now_s=3.0)),
    st.sampled_from([2.0, 5.0, 1000.0]).map(lambda t: Ticked(now_s=t)),
)
HAPPY_PATH: list[Event] = [
    *map(joined, NAMES),
    progressed("w0"),
    measured(),
    PlanMade(now_s=2.0, plan=make_plan(NAMES[:2])),
    *map(loaded, NAMES[:2]),
]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(HAPPY_PATH)), st.lists(st.one_of(happy, happy, sad), max_size=25))
def test_any_order_of_events(num_happy: int, events: list[Event]) -> None:
    state = ClusterState(NAMES, now_s=0.0)
    serving = False
    for event in [*HAPPY_PATH[:num_happy], *events]:
        before = state.phase
        try:
            actions = state.handle(event)
        except IllegalTransitionError:
            assert state.phase == before
            continue
        assert ORDER.index(state.phase) >= ORDER.index(before)
        kinds = [type(action) for action in actions]
        serving = (serving or StartServing in kinds) and StopServing not in kinds
        assert serving == (state.phase == "ready")
        assert (LoadStages in kinds) == (before == "measuring" and state.phase == "loading")
        ended = before not in ("failed", "stopping") and state.phase in ("failed", "stopping")
        assert not ended or FailRequests in kinds
        assert (ShutDownWorkers in kinds) == (before != "stopping" and state.phase == "stopping")
        if serving:
            assert state.plan is not None
            planned = {stage.worker for stage in state.plan.stages}
            for worker in state.snapshot():
                assert worker.phase == "ready" if worker.name in planned else worker.phase in ("standby", "lost")
        assert state.phase == "ready" or state.detail
        assert state.epoch == (0 if state.plan is None else 1)
