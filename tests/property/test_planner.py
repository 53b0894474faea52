"""Plans cover, fit, repeat, are never made worse by more, and say what they say truly."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.errors import InfeasiblePlanError
from butterfly.partitioning import plan
from butterfly.specs import (
    ClusterSpec,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    Objective,
    Plan,
    PlanConstraints,
    WorkloadSpec,
)

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "balanced")


@st.composite
def models(draw: st.DrawFn) -> ModelFootprint:
    num_layers = draw(st.integers(1, 9))
    is_uniform = draw(st.booleans())
    sizes = st.lists(st.integers(1, 100), min_size=num_layers, max_size=num_layers)
    one_size = st.integers(1, 100).map(lambda size: [size] * num_layers)
    return ModelFootprint(
        layer_weight_bytes=tuple(draw(one_size if is_uniform else sizes)),
        embedding_bytes=draw(st.integers(0, 200)),
        head_bytes=draw(st.integers(0, 200)),
        kv_bytes_per_token=tuple(draw(one_size if is_uniform else sizes)),
        max_context=draw(st.integers(1, 20)),
        hidden_bytes_per_token=draw(st.integers(1, 100)),
        activation_bytes_per_token=draw(st.integers(0, 2)),
    )


@st.composite
def clusters(draw: st.DrawFn) -> ClusterSpec:
    memories = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=4))
    names = [f"w{i}" for i in range(len(memories))]
    ends = [*names, "coordinator"]
    pairs = draw(st.lists(st.tuples(st.sampled_from(ends), st.sampled_from(ends)), max_size=6, unique=True))
    return ClusterSpec(
        nodes=tuple(
            NodeSpec(name=name, memory_bytes=memory, memory_bandwidth_bytes_per_s=draw(st.floats(1.0, 1e6)))
            for name, memory in zip(names, memories, strict=True)
        ),
        links=tuple(
            LinkSpec(
                source=a,
                target=b,
                latency_s=draw(st.floats(0.0, 1.0)),
                bandwidth_bytes_per_s=draw(st.floats(1.0, 1e6)),
            )
            for a, b in pairs
            if a != b
        ),
    )


workloads = st.builds(
    WorkloadSpec,
    concurrency=st.integers(1, 6),
    context=st.integers(1, 30),
    objective=st.sampled_from(OBJECTIVES),
    prompt_tokens=st.integers(1, 64),
    max_num_batched_tokens=st.integers(1, 64),
)
constraints = st.builds(PlanConstraints, use_all=st.booleans(), max_nodes=st.sampled_from([0, 0, 2, 4]))
problems = settings(max_examples=200, deadline=None)


def try_plan(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec,
    asked: PlanConstraints = PlanConstraints(),  # noqa: B008 - frozen
) -> Plan | None:
    try:
        return plan(model, cluster, workload, asked)
    except InfeasiblePlanError:
        return None


@problems
@given(models(), clusters(), workloads, constraints)
def test_a_plan_covers_all_layers_in_order_within_memory(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec, asked: PlanConstraints
) -> None:
    made = try_plan(model, cluster, workload, asked)
    if made is None:
        return
    nodes = {node.name: node for node in cluster.nodes}
    covered = [layer for stage in made.stages for layer in range(stage.start, stage.end)]
    assert covered == list(range(len(model.layer_weight_bytes)))
    used = [stage.worker for stage in made.stages]
    assert sorted([*used, *made.left_out]) == sorted(nodes)
    assert len(used) == len(nodes) if asked.use_all else 1 <= len(used) <= (asked.max_nodes or len(nodes))
    assert [stage.embedding for stage in made.stages] == [i == 0 for i in range(len(used))]
    assert [stage.head for stage in reversed(made.stages)] == [i == 0 for i in range(len(used))]
    kv_tokens = workload.concurrency * min(workload.context, model.max_context)
    assert made.kv_capacity_tokens == kv_tokens
    for stage in made.stages:
        layers = slice(stage.start, stage.end)
        weights = sum(model.layer_weight_bytes[layers])
        weights += stage.embedding * model.embedding_bytes + stage.head * model.head_bytes
        assert stage.weight_bytes == weights
        assert stage.kv_bytes == sum(model.kv_bytes_per_token[layers]) * kv_tokens
        assert stage.activation_bytes == model.activation_bytes_per_token * workload.max_num_batched_tokens
        assert stage.num_bytes <= nodes[stage.worker].memory_bytes
    assert 0 < made.bound_tpot_s < made.predicted_tpot_s
    assert made.predicted_ttft_s > 0
    assert made.predicted_tokens_per_s > 0
    assert made.pin_cost_s >= 0


@problems
@given(models(), clusters(), workloads, st.integers(0, 4), st.integers(1, 2000))
def test_more_memory_never_makes_a_plan_worse(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec, which: int, more: int
) -> None:
    before = try_plan(model, cluster, workload)
    if before is None:
        return
    which %= len(cluster.nodes)
    nodes = list(cluster.nodes)
    nodes[which] = msgspec.structs.replace(nodes[which], memory_bytes=nodes[which].memory_bytes + more)
    after = try_plan(model, msgspec.structs.replace(cluster, nodes=tuple(nodes)), workload)
    assert after is not None
    assert after.cost_s <= before.cost_s * (1 + 1e-9)


@problems
@given(models(), clusters(), workloads)
def test_another_node_never_makes_a_plan_worse(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec
) -> None:
    before = try_plan(model, cluster, workload)
    if before is None:
        return
    more = NodeSpec(name="more", memory_bytes=3000, memory_bandwidth_bytes_per_s=1e4)
    after = try_plan(model, msgspec.structs.replace(cluster, nodes=(*cluster.nodes, more)), workload)
    assert after is not None
    assert after.cost_s <= before.cost_s * (1 + 1e-9)


@problems
@given(models(), clusters(), workloads)
def test_latency_is_never_worse_than_that_of_a_single_node_that_fits(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec
) -> None:
    workload = msgspec.structs.replace(workload, objective="latency")
    made = try_plan(model, cluster, workload)
    for node in cluster.nodes:
        others = tuple(other.name for other in cluster.nodes if other is not node)
        alone = try_plan(model, cluster, workload, PlanConstraints(exclude=others))
        if alone is not None:
            assert made is not None
            assert made.predicted_tpot_s <= alone.predicted_tpot_s * (1 + 1e-9)


@problems
@given(models(), clusters(), workloads)
def test_the_same_input_gives_the_same_bytes_also_by_way_of_json(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec
) -> None:
    made = try_plan(model, cluster, workload)
    again = try_plan(
        msgspec.json.decode(msgspec.json.encode(model), type=ModelFootprint),
        msgspec.json.decode(msgspec.json.encode(cluster), type=ClusterSpec),
        workload,
    )
    assert msgspec.json.encode(made) == msgspec.json.encode(again)
    if made is not None:
        assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made


@problems
@given(models(), workloads)
def test_a_single_node_gets_everything_if_it_has_just_enough(model: ModelFootprint, workload: WorkloadSpec) -> None:
    kv_tokens = workload.concurrency * min(workload.context, model.max_context)
    needed = sum(model.layer_weight_bytes) + model.embedding_bytes + model.head_bytes
    needed += sum(model.kv_bytes_per_token) * kv_tokens
    needed += model.activation_bytes_per_token * workload.max_num_batched_tokens
    node = NodeSpec(name="only", memory_bytes=needed, memory_bandwidth_bytes_per_s=1.0)
    made = plan(model, ClusterSpec(nodes=(node,)), workload)
    assert [(s.start, s.end, s.embedding, s.head) for s in made.stages] == [
        (0, len(model.layer_weight_bytes), True, True)
    ]
    if needed > 1:
        smaller = msgspec.structs.replace(node, memory_bytes=needed - 1)
        with pytest.raises(InfeasiblePlanError):
            plan(model, ClusterSpec(nodes=(smaller,)), workload)
