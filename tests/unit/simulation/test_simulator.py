"""The simulation against closed forms, and its failure stories."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.errors import InfeasiblePlanError
from butterfly.partitioning.costs import HOP_SOFTWARE_S, LOOPBACK_LATENCY_S
from butterfly.simulation import (
    FaultSpec,
    SimulatedRequest,
    SimulationConfig,
    SimulationReport,
    simulate,
)
from butterfly.specs import (
    ClusterSpec,
    ComputeProfile,
    LayerProfile,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    PlanConstraints,
    TimeTable,
    WorkloadSpec,
)

MODEL = ModelFootprint(
    layer_weight_bytes=(100_000_000,) * 4,
    embedding_bytes=30_000_000,
    head_bytes=30_000_000,
    kv_bytes_per_token=(10_000,) * 4,
    max_context=4096,
    hidden_bytes_per_token=4096,
)
BANDWIDTH = 10e9
WORKLOAD = WorkloadSpec(concurrency=4, context=1024, objective="throughput")
EVERY_NODE = PlanConstraints(use_all=True)


def make_cluster(num_nodes: int) -> ClusterSpec:
    return ClusterSpec(
        nodes=tuple(
            NodeSpec(name=f"w{i}", memory_bytes=10**9, memory_bandwidth_bytes_per_s=BANDWIDTH) for i in range(num_nodes)
        )
    )


def streams(count: int, num_prompt: int = 16, max_tokens: int = 50) -> list[SimulatedRequest]:
    return [
        SimulatedRequest(request_id=f"r{i}", arrival_s=0.0, num_prompt_tokens=num_prompt, max_tokens=max_tokens)
        for i in range(count)
    ]


def run(num_nodes: int, count: int, **options: object) -> SimulationReport:
    config = msgspec.convert({"constraints": EVERY_NODE, **options}, SimulationConfig)
    return simulate(MODEL, make_cluster(num_nodes), WORKLOAD, streams(count), config)


def test_one_stream_on_one_worker_has_the_tpot_of_the_closed_form() -> None:
    report = run(num_nodes=1, count=1)
    (request,) = report.requests
    weights = 4 * 100_000_000 + 30_000_000
    hops_s = 2 * (LOOPBACK_LATENCY_S + 4 / 1e9 + HOP_SOFTWARE_S)
    mean_context = 16 + 50 / 2  # 49 decode tokens, which read 17, 18, ... 65 tokens of KV cache
    tpot_s = (weights + mean_context * 4 * 10_000) / BANDWIDTH + hops_s
    assert request.tpot_s == pytest.approx(tpot_s, rel=1e-9)
    assert (request.finish_reason, request.num_output_tokens) == ("length", 50)
    prefill_s = (weights + 16 * 4 * 10_000) / BANDWIDTH + 2 * (LOOPBACK_LATENCY_S + HOP_SOFTWARE_S) + 68 / 1e9
    assert request.ttft_s == pytest.approx(prefill_s, rel=1e-9)
    assert report.makespan_s == pytest.approx(prefill_s + 49 * tpot_s, rel=1e-9)


def test_two_streams_over_two_stages_overlap() -> None:
    one, two = run(num_nodes=2, count=1), run(num_nodes=2, count=2)
    assert two.throughput_tokens_per_s > 1.8 * one.throughput_tokens_per_s
    assert min(stage.busy_share for stage in two.stages) > 0.85
    assert max(stage.busy_share for stage in one.stages) < 0.55


def test_every_token_has_its_time() -> None:
    (request,) = run(num_nodes=2, count=1).requests
    times = request.token_times_s
    assert (len(times), list(times)) == (50, sorted(times))
    assert (request.ttft_s, request.ended_s) == (times[0], times[-1])
    assert request.tpot_s == pytest.approx((times[-1] - times[0]) / 49)


def test_the_plain_loop_keeps_one_stage_busy_at_a_time() -> None:
    plain = run(num_nodes=2, count=2, num_slots=1)
    assert sum(stage.busy_share for stage in plain.stages) < 1.0


SHARED = PlanConstraints(max_nodes=2)  # and the model does not fit one


def make_small_cluster(num_nodes: int) -> ClusterSpec:
    """Two of them hold the model, one does not."""
    return ClusterSpec(
        nodes=tuple(msgspec.structs.replace(node, memory_bytes=500_000_000) for node in make_cluster(num_nodes).nodes)
    )


class TestAWorkerDies:
    @pytest.mark.parametrize(
        ("kind", "reason", "noticed_s"),
        [
            ("exit", "worker w1 was killed by signal 9", 0.5),
            ("silence", "worker w1 was silent for more than 3 s", 3.25),
        ],
    )
    def test_requests_go_on_without_it(self, kind: str, reason: str, noticed_s: float) -> None:
        fault = msgspec.convert({"worker": "w1", "at_s": 0.5, "kind": kind}, FaultSpec)
        config = SimulationConfig(constraints=EVERY_NODE, faults=(fault,), load_bytes_per_s=1e8)
        during = SimulatedRequest(request_id="during", arrival_s=4.0, num_prompt_tokens=4, max_tokens=4)
        quiet = SimulationConfig(constraints=EVERY_NODE)
        calm = simulate(MODEL, make_cluster(3), WORKLOAD, [*streams(6), during], quiet)
        report = simulate(MODEL, make_cluster(3), WORKLOAD, [*streams(6), during], config)
        assert [(request.finish_reason, request.error) for request in report.requests] == [("length", "")] * 7
        tokens = [request.num_output_tokens for request in report.requests]
        assert tokens == [request.num_output_tokens for request in calm.requests]
        assert [stage.worker for stage in report.plan.stages] == ["w0", "w2"]
        assert {stage.worker for stage in report.stages} == {"w0", "w1", "w2"}
        recovery = report.recovery
        assert recovery is not None
        assert (recovery.cause, recovery.noticed_s) == (reason, noticed_s)
        assert recovery.planned_s == recovery.noticed_s
        assert recovery.loaded_s is not None
        assert 1.0 <= recovery.loaded_s - recovery.noticed_s <= 3.0  # a layer or two at 0.1 GB/s
        times = [time for request in report.requests[:-1] for time in request.token_times_s]
        assert not [time for time in times if noticed_s < time < recovery.loaded_s]
        assert [time for time in times if time < 0.5]
        assert (report.phase, report.detail) == ("ready", reason)

    def test_where_nothing_fits_requests_end_with_its_name_and_what_would_fit(self) -> None:
        late = SimulatedRequest(request_id="late", arrival_s=20.0, num_prompt_tokens=4, max_tokens=4)
        config = SimulationConfig(faults=(FaultSpec(worker="w1", at_s=0.5),))
        report = simulate(MODEL, make_small_cluster(2), WORKLOAD, [*streams(6), late], config)
        assert [request.finish_reason for request in report.requests] == ["error"] * 7
        for request in report.requests:
            assert request.error.startswith("worker w1 was killed by signal 9, and no plan fits")
            assert "would fit" in request.error
        assert [request.ended_s for request in report.requests] == [0.5] * 6 + [20.0]
        assert report.requests[0].num_output_tokens > 0
        assert (report.phase, report.detail) == ("waiting", report.requests[-1].error)

    def test_a_node_on_standby_takes_its_place(self) -> None:
        config = SimulationConfig(constraints=SHARED, faults=(FaultSpec(worker="w1", at_s=0.5),))
        report = simulate(MODEL, make_small_cluster(3), WORKLOAD, streams(6), config)
        assert [request.finish_reason for request in report.requests] == ["length"] * 6
        assert "w1" not in {stage.worker for stage in report.plan.stages}
        assert len(report.plan.stages) == 2

    def test_it_is_started_again_and_the_model_served_again(self) -> None:
        config = SimulationConfig(faults=(FaultSpec(worker="w1", at_s=0.5),), restart_s=2.0)
        late = [msgspec.structs.replace(request, arrival_s=5.0) for request in streams(6)]
        again = [msgspec.structs.replace(request, request_id=f"again{i}") for i, request in enumerate(streams(1))]
        report = simulate(MODEL, make_small_cluster(2), WORKLOAD, [*again, *late], config)
        assert [request.finish_reason for request in report.requests] == ["error", *["length"] * 6]
        assert (report.phase, report.detail) == ("ready", "")

    def test_a_fast_one_that_comes_back_is_moved_to(self) -> None:
        slow, fast = make_cluster(2).nodes
        fast = msgspec.structs.replace(fast, memory_bandwidth_bytes_per_s=4 * BANDWIDTH)
        config = SimulationConfig(faults=(FaultSpec(worker="w1", at_s=0.5),), restart_s=2.0)
        report = simulate(MODEL, ClusterSpec(nodes=(slow, fast)), WORKLOAD, streams(6, max_tokens=300), config)
        assert [request.finish_reason for request in report.requests] == ["length"] * 6
        assert "w1" in {stage.worker for stage in report.plan.stages}
        assert report.recovery is not None
        assert report.recovery.noticed_s > 3.0
        assert "a plan with w1 costs" in report.recovery.cause

    def test_all_may_die_one_after_the_other(self) -> None:
        faults = tuple(FaultSpec(worker=f"w{i}", at_s=0.5 + i) for i in range(3))
        config = SimulationConfig(constraints=EVERY_NODE, faults=faults)
        report = simulate(MODEL, make_cluster(3), WORKLOAD, streams(6, max_tokens=500), config)
        assert {request.finish_reason for request in report.requests} == {"error"}
        assert {request.ended_s for request in report.requests} == {2.5}
        assert report.phase == "waiting"

    def test_the_same_story_gives_the_same_report(self) -> None:
        faults = (FaultSpec(worker="w1", at_s=0.5), FaultSpec(worker="w2", at_s=0.9, kind="silence"))
        config = SimulationConfig(constraints=EVERY_NODE, faults=faults, restart_s=1.5)
        reports = [simulate(MODEL, make_cluster(4), WORKLOAD, streams(9), config) for _ in range(2)]
        assert msgspec.json.encode(reports[0]) == msgspec.json.encode(reports[1])


@pytest.mark.parametrize("kind", ["exit", "silence"])
def test_a_node_that_was_left_out_may_die(kind: str) -> None:
    """One node is as fast as two for a single stream, and needs no link between them."""
    single = WorkloadSpec(concurrency=1, context=1024)
    fault = msgspec.convert({"worker": "w1", "at_s": 1.0, "kind": kind}, FaultSpec)
    report = simulate(MODEL, make_cluster(2), single, streams(1, max_tokens=500), SimulationConfig(faults=(fault,)))
    assert [stage.worker for stage in report.stages] == ["w0"]
    assert [request.finish_reason for request in report.requests] == ["length"]
    assert report.makespan_s > 15.0
    assert report.phase == "ready"
    assert "worker w1, on standby, was" in report.detail


def test_profiled_nodes_take_the_times_of_their_tables_and_links_their_software() -> None:
    """10 ms for a generated token in a layer, and 1 ms more for each 100 tokens before it; 2 ms for one of a prompt."""
    decode = TimeTable(num_tokens=(1, 2), contexts=(0, 100), seconds=((0.010, 0.011), (0.011, 0.012)))
    prefill = TimeTable(num_tokens=(1, 100), contexts=(0,), seconds=((0.002, 0.200),))
    head = TimeTable(num_tokens=(1,), contexts=(0,), seconds=((0.005,),))
    profile = ComputeProfile(layers=(LayerProfile(decode=decode, prefill=prefill),), head=head, step_s=0.003)
    node = msgspec.structs.replace(make_cluster(1).nodes[0], profile=profile)
    link = LinkSpec(source="coordinator", target="w0", latency_s=0.001, bandwidth_bytes_per_s=1e9, software_s=0.002)
    report = simulate(MODEL, ClusterSpec(nodes=(node,), links=(link,)), WORKLOAD, streams(1, num_prompt=20))
    (request,) = report.requests
    hops_s = 2 * (0.001 + 0.002)
    assert request.ttft_s == pytest.approx(0.003 + 4 * 0.040 + 0.005 + hops_s, rel=1e-6)
    mean_context = (20 + 68) / 2  # 49 tokens, before which lie 20, 21, ... 68
    assert request.tpot_s == pytest.approx(0.003 + 4 * (0.010 + mean_context * 1e-5) + 0.005 + hops_s, rel=1e-6)


def test_a_fault_after_the_last_token_changes_nothing() -> None:
    fault = FaultSpec(worker="w0", at_s=1000.0)
    assert run(2, 3) == run(2, 3, faults=(fault,))


def test_the_same_story_gives_the_same_report() -> None:
    first = run(num_nodes=3, count=7, max_num_batched_tokens=20)
    assert msgspec.json.encode(first) == msgspec.json.encode(run(num_nodes=3, count=7, max_num_batched_tokens=20))
    assert [request.finish_reason for request in first.requests] == ["length"] * 7


def test_a_client_that_leaves_ends_with_abort_and_others_go_on() -> None:
    leaving = msgspec.structs.replace(streams(1)[0], abort_s=0.5)
    stays = msgspec.structs.replace(streams(1)[0], request_id="stays")
    gone, stayed = simulate(MODEL, make_cluster(2), WORKLOAD, [leaving, stays]).requests
    assert (gone.finish_reason, gone.ended_s) == ("abort", 0.5)
    assert 0 < gone.num_output_tokens < 50
    assert (stayed.finish_reason, stayed.num_output_tokens) == ("length", 50)


def test_a_refused_request_ends_as_it_arrives_with_the_schedulers_words() -> None:
    (request,) = simulate(MODEL, make_cluster(1), WORKLOAD, streams(1, num_prompt=5000)).requests
    assert request.finish_reason == "error"
    assert "context of 4096" in request.error
    assert (request.ended_s, request.ttft_s, request.tpot_s) == (0.0, None, None)


def test_a_model_that_does_not_fit_is_the_planners_error() -> None:
    small = NodeSpec(name="w0", memory_bytes=10**8, memory_bandwidth_bytes_per_s=BANDWIDTH)
    with pytest.raises(InfeasiblePlanError):
        simulate(MODEL, ClusterSpec(nodes=(small,)), WORKLOAD, streams(1))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="share an id"):
        simulate(MODEL, make_cluster(1), WORKLOAD, streams(1) * 2)
    with pytest.raises(ValueError, match="w9, which is not in the cluster"):
        run(1, 1, faults=(FaultSpec(worker="w9", at_s=1.0),))
    with pytest.raises(TimeoutError, match="1 requests are open after 1 s"):
        run(1, 1, time_limit_s=1.0)
