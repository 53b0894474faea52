"""What is predicted for a token at a context, against the plan's own figures and the tables they come from."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from butterfly.partitioning import costs, plan
from butterfly.partitioning.token_speed import speed_at
from butterfly.specs import ComputeProfile, LayerProfile, PlanConstraints, TimeTable, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

MODEL = make_model(num_layers=6, kv=10, max_context=64)
CLUSTER = make_cluster(100_000, 100_000)
PLAN = plan(MODEL, CLUSTER, WorkloadSpec(context=64), PlanConstraints(use_all=True))


def test_at_half_the_workloads_context_it_is_what_the_plan_predicts() -> None:
    speed = speed_at(PLAN, MODEL, CLUSTER, 32)
    assert speed.tpot_s == pytest.approx(PLAN.predicted_tpot_s)
    assert [stage.worker for stage in speed.stages] == [stage.worker for stage in PLAN.stages]
    assert [stage.compute_s for stage in speed.stages] == pytest.approx(
        [stage.predicted_compute_s for stage in PLAN.stages]
    )
    assert speed.between_s == pytest.approx(sum(stage.predicted_hop_s for stage in PLAN.stages) + PLAN.return_hop_s)


def test_each_token_of_context_costs_what_reading_it_does() -> None:
    shorter, longer = speed_at(PLAN, MODEL, CLUSTER, 10), speed_at(PLAN, MODEL, CLUSTER, 30)
    assert (shorter.context, longer.context) == (10, 30)
    bandwidth = CLUSTER.nodes[0].memory_bandwidth_bytes_per_s
    assert longer.tpot_s - shorter.tpot_s == pytest.approx(20 * costs.kv_bytes_per_token(MODEL, 0, 6) / bandwidth)
    assert longer.between_s == pytest.approx(shorter.between_s)


def test_profiles_are_what_counts_where_there_are_any() -> None:
    flat = TimeTable(num_tokens=(1,), contexts=(0, 100), seconds=((0.010,), (0.020,)))
    head = TimeTable(num_tokens=(1,), contexts=(0,), seconds=((0.5,),))
    profile = ComputeProfile(layers=(LayerProfile(decode=flat, prefill=flat),), head=head, step_s=0.25)
    profiled = replace(CLUSTER, nodes=tuple(replace(node, profile=profile) for node in CLUSTER.nodes))
    speed = speed_at(PLAN, MODEL, profiled, 50)
    wanted = [0.25 + stage.num_layers * 0.015 + 0.5 * stage.head for stage in PLAN.stages]
    assert [stage.compute_s for stage in speed.stages] == pytest.approx(wanted)
