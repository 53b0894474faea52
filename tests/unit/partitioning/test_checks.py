"""Nonsense is refused in one line that names it."""

from __future__ import annotations

import msgspec
import pytest

from butterfly.errors import PlanError
from butterfly.partitioning.checks import check_input
from butterfly.specs import (
    ClusterSpec,
    ComputeProfile,
    LayerPin,
    LayerProfile,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    PlanConstraints,
    TimeTable,
    WorkloadSpec,
)
from tests.unit.partitioning.shapes import make_cluster, make_model

CLUSTER = make_cluster(1000, 1000)
TABLE = TimeTable(num_tokens=(1, 2), contexts=(0,), seconds=((1.0, 2.0),))


def with_link(**changes: object) -> ClusterSpec:
    link = LinkSpec(source="w0", target="w1", latency_s=0.0, bandwidth_bytes_per_s=1.0)
    return msgspec.structs.replace(CLUSTER, links=(msgspec.structs.replace(link, **changes),))


def with_node(**changes: object) -> ClusterSpec:
    return ClusterSpec(nodes=(msgspec.structs.replace(CLUSTER.nodes[0], **changes),))


def profile(table: TimeTable = TABLE, num_kinds: int = 1) -> ComputeProfile:
    return ComputeProfile(layers=(LayerProfile(decode=table, prefill=TABLE),) * num_kinds, head=TABLE, step_s=0.0)


@pytest.mark.parametrize(
    ("cluster", "what"),
    [
        (ClusterSpec(nodes=(*CLUSTER.nodes, CLUSTER.nodes[0])), "share a name"),
        (with_node(name="coordinator"), "cannot be called coordinator"),
        (with_node(memory_bytes=0), "w0 needs positive memory"),
        (with_node(memory_bandwidth_bytes_per_s=0.0), "w0 needs positive memory"),
        (with_node(flops_per_s=-1.0), "w0 needs positive memory"),
        (with_node(profile=profile(num_kinds=2)), "profiled for 2 kinds of layers, and the model has 1"),
        (with_node(profile=profile(TimeTable(num_tokens=(2, 1), contexts=(0,), seconds=((1.0, 2.0),)))), "not sorted"),
        (with_node(profile=profile(TimeTable(num_tokens=(1, 2), contexts=(0,), seconds=((1.0,),)))), "not whole"),
        (
            with_node(profile=profile(TimeTable(num_tokens=(1,), contexts=(0,), seconds=((float("nan"),),)))),
            "times that are none",
        ),
        (with_link(target="w9"), "ends at w9, which is no node .there are w0, w1"),
        (with_link(bandwidth_bytes_per_s=0.0), "w0-w1 needs a positive bandwidth"),
        (with_link(latency_s=-1.0), "no negative latency"),
    ],
)
def test_a_cluster_that_cannot_be(cluster: ClusterSpec, what: str) -> None:
    with pytest.raises(PlanError, match=what):
        check_input(make_model(), cluster, WorkloadSpec(), PlanConstraints())


@pytest.mark.parametrize(
    ("constraints", "what"),
    [
        (PlanConstraints(exclude=("w9",)), "there is no node w9 .there are w0, w1"),
        (PlanConstraints(max_nodes=-1), "-1 nodes"),
        (PlanConstraints(layers=(LayerPin(node="w0", start=0, end=7),)), "w0=0:7 are no layers of a model with 6"),
        (PlanConstraints(layers=(LayerPin(node="w0", start=2, end=2),)), "w0=2:2 are no layers"),
        (
            PlanConstraints(exclude=("w0",), layers=(LayerPin(node="w0", start=0, end=1),)),
            "cannot be excluded and hold",
        ),
        (
            PlanConstraints(layers=(LayerPin(node="w0", start=0, end=3), LayerPin(node="w1", start=2, end=6))),
            "w0=0:3 and w1=2:6 overlap",
        ),
        (
            PlanConstraints(layers=(LayerPin(node="w0", start=0, end=1), LayerPin(node="w0", start=2, end=3))),
            "one range of layers only",
        ),
    ],
)
def test_constraints_that_cannot_be_kept(constraints: PlanConstraints, what: str) -> None:
    with pytest.raises(PlanError, match=what):
        check_input(make_model(), CLUSTER, WorkloadSpec(), constraints)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (make_model(num_layers=0), "0 layers"),
        (msgspec.structs.replace(make_model(), kv_bytes_per_token=(1,)), "6 layers and KV sizes of 1"),
        (msgspec.structs.replace(make_model(), layer_kinds=(0,)), "kinds of 1 layers"),
        (make_model(max_context=0), "at least 1"),
    ],
)
def test_a_model_that_cannot_be(model: ModelFootprint, what: str) -> None:
    with pytest.raises(PlanError, match=what):
        check_input(model, CLUSTER, WorkloadSpec(), PlanConstraints())


def test_what_makes_sense_passes() -> None:
    node = NodeSpec(name="w0", memory_bytes=1, memory_bandwidth_bytes_per_s=1.0, profile=profile())
    pins = PlanConstraints(layers=(LayerPin(node="w0", start=0, end=6),))
    check_input(make_model(), ClusterSpec(nodes=(node,)), WorkloadSpec(), pins)
