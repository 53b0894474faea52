"""Every stage busy, every client served: what the scheduler promises, on modelled stages where arithmetic binds."""

from __future__ import annotations

from itertools import cycle, pairwise
from statistics import median

import pytest

from butterfly.simulation import SimulatedRequest, SimulationConfig, SimulationReport, simulate
from butterfly.specs import ClusterSpec, ModelFootprint, NodeSpec, PlanConstraints, PrefixReuse, WorkloadSpec

MODEL = ModelFootprint(
    layer_weight_bytes=(100_000_000,) * 4,
    embedding_bytes=30_000_000,
    head_bytes=0,
    kv_bytes_per_token=(10_000,) * 4,
    max_context=4096,
    hidden_bytes_per_token=4096,
)
CLUSTER = ClusterSpec(
    nodes=tuple(
        NodeSpec(name=name, memory_bytes=10**10, memory_bandwidth_bytes_per_s=10e9) for name in ("first", "second")
    )
)
WORKLOAD = WorkloadSpec(concurrency=17, context=4096, objective="throughput")
PROMPTS = (16, 60, 200, 500)  # tokens
ROWS = 4  # from which on every token of a step costs its share


def serve(
    arrivals: list[SimulatedRequest], num_slots: int | None = None, reuse: PrefixReuse = "all"
) -> SimulationReport:
    config = SimulationConfig(
        constraints=PlanConstraints(use_all=True),
        num_slots=num_slots,
        max_num_sequences=17,
        rows_per_weight_pass=ROWS,
        prefix_reuse=reuse,
    )
    report = simulate(MODEL, CLUSTER, WORKLOAD, arrivals, config)
    assert [request.finish_reason for request in report.requests] == ["length"] * len(arrivals)
    return report


def streams(count: int, max_tokens: int = 200) -> list[SimulatedRequest]:
    return [
        SimulatedRequest(request_id=f"r{number}", arrival_s=0.0, num_prompt_tokens=length, max_tokens=max_tokens)
        for number, length in zip(range(count), cycle(PROMPTS), strict=False)
    ]


@pytest.mark.parametrize("count", [16, 48])  # all at once, and most of them waiting for their turn
def test_both_stages_are_busy_and_overlap_pays(count: int) -> None:
    overlapped, plain = serve(streams(count)), serve(streams(count), num_slots=1)
    assert min(stage.busy_share for stage in overlapped.stages) >= 0.85
    assert overlapped.throughput_tokens_per_s >= 1.7 * plain.throughput_tokens_per_s


def test_a_long_prompt_does_not_double_the_time_between_the_tokens_of_others() -> None:
    readers = streams(16, max_tokens=600)
    alone = serve(readers)
    all_read_s = max(request.token_times_s[0] for request in alone.requests)
    arrival_s = (all_read_s + alone.makespan_s) / 2
    long = SimulatedRequest(request_id="long", arrival_s=arrival_s, num_prompt_tokens=2000, max_tokens=4)
    report = serve([*readers, long])
    ttft_s = report.requests[-1].ttft_s
    assert ttft_s is not None
    before = _gaps(report, all_read_s, arrival_s)
    during = _gaps(report, arrival_s, arrival_s + ttft_s)
    assert min(len(before), len(during)) > 1000
    assert median(during) <= 2 * median(before)
    assert report.requests[-1].ended_s < report.makespan_s


def _gaps(report: SimulationReport, start_s: float, end_s: float) -> list[float]:
    """The seconds between tokens of all streams but the last, of tokens that follow one of this time."""
    return [
        after - before
        for request in report.requests[:-1]
        for before, after in pairwise(request.token_times_s)
        if start_s <= before < end_s
    ]


class TestPrefixReuse:
    def test_a_conversation_computes_only_what_is_new(self) -> None:
        turns, num_tokens = [], 0
        for number in range(10):
            num_tokens += 100  # of the user's
            turns.append(
                SimulatedRequest(
                    request_id=f"turn{number}",
                    arrival_s=100.0 * number,
                    num_prompt_tokens=num_tokens,
                    max_tokens=50,
                    conversation="chat",
                )
            )
            num_tokens += 50
        report = serve(turns)
        prompts = [turn.num_prompt_tokens for turn in turns]
        computed = [n - request.num_cached_tokens for n, request in zip(prompts, report.requests, strict=True)]
        assert computed == [100] + [101] * 9  # the last token of an answer is never computed to answer it
        assert [request.num_cached_tokens for request in serve(turns, reuse="off").requests] == [0] * 10

    def test_a_shared_beginning_is_copied_and_costs_its_bytes_not_its_computation(self) -> None:
        requests = [
            SimulatedRequest(
                request_id=f"r{number}",
                arrival_s=100.0 * number,
                num_prompt_tokens=1100,
                num_shared_tokens=1000,
                max_tokens=2,
            )
            for number in range(3)
        ]
        first, *others = serve(requests).requests
        assert first.num_cached_tokens == 0
        assert [request.num_cached_tokens for request in others] == [1000, 1000]
        assert first.ttft_s is not None
        copy_s = 2 * 1000 * 20_000 / 10e9  # on each of two stages
        for request in others:
            assert request.ttft_s is not None
            assert 2 * copy_s < request.ttft_s < 0.5 * first.ttft_s
