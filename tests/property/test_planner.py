"""Plans cover, fit, repeat; and what does not fit truly does not fit in the given order."""

from __future__ import annotations

from itertools import combinations, pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.errors import InfeasiblePlanError
from butterfly.partitioning import costs, plan
from butterfly.specs import ClusterSpec, ModelFootprint, NodeSpec, Plan, WorkloadSpec


@st.composite
def models(draw: st.DrawFn) -> ModelFootprint:
    num_layers = draw(st.integers(1, 9))
    sizes = st.lists(st.integers(1, 100), min_size=num_layers, max_size=num_layers)
    return ModelFootprint(
        layer_weight_bytes=tuple(draw(sizes)),
        embedding_bytes=draw(st.integers(0, 200)),
        head_bytes=draw(st.integers(0, 200)),
        kv_bytes_per_token=tuple(draw(sizes)),
        max_context=draw(st.integers(1, 20)),
        hidden_bytes_per_token=draw(st.integers(1, 100)),
    )


@st.composite
def clusters(draw: st.DrawFn) -> ClusterSpec:
    memories = draw(st.lists(st.integers(1, 3000), min_size=1, max_size=5))
    return ClusterSpec(
        nodes=tuple(
            NodeSpec(name=f"w{i}", memory_bytes=memory, memory_bandwidth_bytes_per_s=draw(st.floats(1.0, 1e9)))
            for i, memory in enumerate(memories)
        )
    )


workloads = st.builds(WorkloadSpec, concurrency=st.integers(1, 3), context=st.integers(1, 30))
problems = settings(max_examples=300, deadline=None)


def try_plan(model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec) -> Plan | None:
    try:
        return plan(model, cluster, workload)
    except InfeasiblePlanError as error:
        if not error.violations:
            raise
        return None


def some_cut_fits(model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec) -> bool:
    """Try every way to cut the layers into one non-empty range per node."""
    num_layers, num_nodes = len(model.layer_weight_bytes), len(cluster.nodes)
    kv_tokens = workload.concurrency * min(workload.context, model.max_context)
    for cuts in combinations(range(1, num_layers), num_nodes - 1):
        ends = (0, *cuts, num_layers)
        needs = [
            costs.weight_bytes(model, a, b, embedding=a == 0, head=b == num_layers)
            + costs.kv_bytes_per_token(model, a, b) * kv_tokens
            for a, b in pairwise(ends)
        ]
        if all(need <= node.memory_bytes for need, node in zip(needs, cluster.nodes, strict=True)):
            return True
    return False


@problems
@given(models(), clusters(), workloads)
def test_a_plan_covers_all_layers_in_order_within_memory(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec
) -> None:
    made = try_plan(model, cluster, workload)
    assert (made is not None) == some_cut_fits(model, cluster, workload)
    if made is None:
        return
    covered = [layer for stage in made.stages for layer in range(stage.start, stage.end)]
    assert covered == list(range(len(model.layer_weight_bytes)))
    assert [stage.worker for stage in made.stages] == [node.name for node in cluster.nodes]
    assert [stage.embedding for stage in made.stages] == [i == 0 for i in range(len(made.stages))]
    assert [stage.head for stage in reversed(made.stages)] == [i == 0 for i in range(len(made.stages))]
    kv_tokens = workload.concurrency * min(workload.context, model.max_context)
    assert made.kv_capacity_tokens == kv_tokens
    for stage, node in zip(made.stages, cluster.nodes, strict=True):
        assert stage.num_layers >= 1
        layers = slice(stage.start, stage.end)
        weights = sum(model.layer_weight_bytes[layers])
        weights += stage.embedding * model.embedding_bytes + stage.head * model.head_bytes
        assert stage.weight_bytes == weights
        assert stage.kv_bytes == sum(model.kv_bytes_per_token[layers]) * kv_tokens
        assert stage.weight_bytes + stage.kv_bytes <= node.memory_bytes
    assert 0 < made.bound_tpot_s < made.predicted_tpot_s


@problems
@given(models(), clusters(), workloads, st.integers(0, 4), st.integers(1, 2000))
def test_more_memory_on_any_node_keeps_a_plan_feasible(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec, which: int, more: int
) -> None:
    if try_plan(model, cluster, workload) is None:
        return
    which %= len(cluster.nodes)
    nodes = list(cluster.nodes)
    larger = nodes[which].memory_bytes + more
    nodes[which] = msgspec.structs.replace(nodes[which], memory_bytes=larger)
    assert try_plan(model, ClusterSpec(nodes=tuple(nodes)), workload) is not None


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
    node = NodeSpec(name="only", memory_bytes=needed, memory_bandwidth_bytes_per_s=1.0)
    made = plan(model, ClusterSpec(nodes=(node,)), workload)
    assert [(s.start, s.end, s.embedding, s.head) for s in made.stages] == [
        (0, len(model.layer_weight_bytes), True, True)
    ]
    smaller = msgspec.structs.replace(node, memory_bytes=needed - 1)
    assert try_plan(model, ClusterSpec(nodes=(smaller,)), workload) is None
