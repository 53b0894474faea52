"""Hidden states go over a link in what is quickest, for each size of message."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings

from butterfly.errors import PlanError
from butterfly.partitioning import costs, explain, plan
from butterfly.partitioning.solve import solve
from butterfly.specs import ClusterSpec, CodecSpec, LinkSpec, Plan, WorkloadSpec
from tests.support.problems import Case, any_cases, least_cost_s
from tests.unit.partitioning.shapes import make_cluster, make_model

HALF = CodecSpec(name="half", ratio=0.5, encode_s_per_byte=0.001, decode_s_per_byte=0.002)
QUARTER = CodecSpec(name="quarter", ratio=0.25, encode_s_per_byte=0.02, decode_s_per_byte=0.0)
MODEL = make_model()
WORKLOAD = WorkloadSpec(concurrency=4, context=10, objective="throughput")


def link(bandwidth: float, *codecs: CodecSpec, latency_s: float = 0.1) -> LinkSpec:
    return LinkSpec(
        source="w0", target="w1", latency_s=latency_s, bandwidth_bytes_per_s=bandwidth, software_s=0.0, codecs=codecs
    )


def test_the_quickest_is_taken_and_plain_of_equal_ones() -> None:
    for bandwidth, codec, seconds, occupied_s in (
        (10.0, "quarter", 4.5, 2.5),
        (25.0, "half", 2.3, 2.0),
        (1000.0, "", 0.1, 0.1),
    ):
        carried = costs.carry(link(bandwidth, QUARTER, HALF), 100)
        assert carried.codec == codec
        assert carried[1:] == pytest.approx((seconds, occupied_s))
    free = CodecSpec(name="as plain", ratio=1.0, encode_s_per_byte=0.0, decode_s_per_byte=0.0)
    assert costs.carry(link(10.0, free), 100).codec == ""
    assert costs.hidden_hop_s(link(10.0, QUARTER), 100) == pytest.approx(4.6)
    assert costs.hop_s(link(10.0, QUARTER), 100) == pytest.approx(10.1)  # token ids go plain


def test_encoding_that_takes_longer_than_sending_keeps_the_next_message_waiting() -> None:
    hard = CodecSpec(name="hard", ratio=0.01, encode_s_per_byte=0.03, decode_s_per_byte=0.01)
    assert costs.carry(link(10.0, hard), 100)[1:] == pytest.approx((4.1, 3.0))


def two_nodes(*codecs: CodecSpec, bandwidth: float = 10.0) -> ClusterSpec:
    """Neither holds all."""
    return msgspec.structs.replace(make_cluster(600, 600), links=(link(bandwidth, *codecs),))


def test_a_plan_says_what_each_stage_is_reached_in() -> None:
    plain, coded = (plan(MODEL, two_nodes(*codecs), WORKLOAD) for codecs in ((), (HALF,)))
    assert [stage.codec for stage in plain.stages] == ["", ""]
    assert [stage.codec for stage in coded.stages] == ["", "half"]
    assert coded.stages[1].predicted_hop_s < plain.stages[1].predicted_hop_s
    assert coded.predicted_tokens_per_s > plain.predicted_tokens_per_s
    assert coded.predicted_ttft_s < plain.predicted_ttft_s
    assert f"hidden states of decode reach {coded.stages[1].worker} in half" in explain(coded, MODEL, two_nodes(HALF))


def test_a_codec_that_never_pays_changes_no_byte_of_the_plan() -> None:
    made: list[Plan] = [plan(MODEL, two_nodes(*codecs, bandwidth=1e9), WORKLOAD) for codecs in ((), (HALF, QUARTER))]
    assert msgspec.json.encode(made[0]) == msgspec.json.encode(made[1])


def with_codecs(case: Case) -> Case:
    links = tuple(
        msgspec.structs.replace(one, codecs=(HALF, QUARTER)[: i % 3]) for i, one in enumerate(case.cluster.links)
    )
    return case._replace(cluster=msgspec.structs.replace(case.cluster, links=links))


@given(any_cases(most_nodes=3, most_layers=5).map(with_codecs))
@settings(deadline=None, max_examples=40)
def test_solvers_price_links_with_codecs_as_trying_all_placements_does(case: Case) -> None:
    found = solve(case.problem())
    least_s = least_cost_s(case.problem())
    assert (found.cost_s if found else float("inf")) == pytest.approx(least_s, rel=1e-9)


@pytest.mark.parametrize(
    ("codecs", "problem"),
    [
        ((HALF, HALF), "need names, each its own"),
        ((msgspec.structs.replace(HALF, name=""),), "need names, each its own"),
        ((msgspec.structs.replace(HALF, ratio=0.0),), "codec half of link w0-w1 needs a ratio above 0"),
        ((msgspec.structs.replace(HALF, decode_s_per_byte=-1.0),), "times that are not negative"),
        ((msgspec.structs.replace(HALF, encode_s_per_byte=float("nan")),), "times that are not negative"),
    ],
)
def test_what_is_no_codec_is_refused(codecs: tuple[CodecSpec, ...], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        plan(MODEL, two_nodes(*codecs), WORKLOAD)
