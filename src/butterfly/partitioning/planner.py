"""`plan()`: from sizes and speeds to stages, with predictions and what binds."""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.errors import InfeasiblePlanError, PlanError
from butterfly.partitioning import costs
from butterfly.partitioning.infeasibility import refuse
from butterfly.partitioning.placement import MemoryProblem, nearest_fit, proportional_counts
from butterfly.specs import ClusterSpec, ModelFootprint, NodeSpec, Plan, StagePlan, WorkloadSpec


def plan(
    model: ModelFootprint,
    cluster: ClusterSpec,
    workload: WorkloadSpec,
    pinned_order: Sequence[str] | None = None,
) -> Plan:
    """Place every layer: in proportion to memory, nodes in the given order, no node over its memory.

    `pinned_order` names all nodes in the order of the stages; without it they come as the cluster lists
    them. KV cache is reserved for `workload.concurrency` sequences of `workload.context` tokens (never
    more than the model's context). Times are of one decode token of one stream at half that context.
    The placement ignores `objective`.

    Raises InfeasiblePlanError with every violation and the nearest change that would fit, PlanError for
    input that is no cluster, model or workload.
    """
    nodes = _ordered_nodes(cluster, pinned_order)
    context = _check_input(model, nodes, workload)
    if not nodes:
        raise InfeasiblePlanError("no workers: a plan needs at least one", ("0 workers",))
    num_layers = len(model.layer_weight_bytes)
    if len(nodes) > num_layers:
        message = f"{len(nodes)} workers but the model has {num_layers} layers"
        raise InfeasiblePlanError(f"{message}: use at most {num_layers} workers", (message,))
    wanted = proportional_counts(num_layers, tuple(node.memory_bytes for node in nodes))
    kv_tokens = workload.total_kv_tokens(context)
    problem = MemoryProblem.of(model, tuple(node.memory_bytes for node in nodes), kv_tokens)
    counts = nearest_fit(problem, wanted)
    if counts is None:
        raise refuse(model, nodes, workload, context)
    stages = _stages(model, nodes, counts, kv_tokens, context)
    squeezed = [node.name for node, got, want in zip(nodes, counts, wanted, strict=True) if got < want]
    return _predict(model, cluster, stages, squeezed, kv_tokens)


def _ordered_nodes(cluster: ClusterSpec, pinned_order: Sequence[str] | None) -> tuple[NodeSpec, ...]:
    by_name = {node.name: node for node in cluster.nodes}
    if len(by_name) != len(cluster.nodes):
        raise PlanError(f"two nodes share a name: {[node.name for node in cluster.nodes]}")
    if pinned_order is None:
        return cluster.nodes
    if sorted(pinned_order) != sorted(by_name):
        raise PlanError(f"the pinned order {list(pinned_order)} must name each of {sorted(by_name)} once")
    return tuple(by_name[name] for name in pinned_order)


def _check_input(model: ModelFootprint, nodes: tuple[NodeSpec, ...], workload: WorkloadSpec) -> int:
    """Return the context to plan for, in tokens. Raises PlanError for nonsense."""
    if not model.layer_weight_bytes or len(model.layer_weight_bytes) != len(model.kv_bytes_per_token):
        raise PlanError(
            f"the model has weights of {len(model.layer_weight_bytes)} layers "
            f"and KV sizes of {len(model.kv_bytes_per_token)}"
        )
    for node in nodes:
        if node.memory_bytes <= 0 or node.memory_bandwidth_bytes_per_s <= 0:
            raise PlanError(f"node {node.name} needs positive memory and bandwidth, not {node}")
    if workload.concurrency < 1 or workload.context < 1 or model.max_context < 1:
        raise PlanError(
            f"concurrency {workload.concurrency}, context {workload.context} and the model's context "
            f"{model.max_context} must be at least 1"
        )
    return min(workload.context, model.max_context)


def _stages(
    model: ModelFootprint, nodes: tuple[NodeSpec, ...], counts: tuple[int, ...], kv_tokens: int, context: int
) -> tuple[StagePlan, ...]:
    stages, start = [], 0
    for i, (node, count) in enumerate(zip(nodes, counts, strict=True)):
        embedding, head = i == 0, i == len(nodes) - 1
        end = start + count
        kv_per_token = costs.kv_bytes_per_token(model, start, end)
        weights_read = costs.weight_bytes(model, start, end, embedding=False, head=head)
        kv_read = kv_per_token * context // 2
        bandwidth = node.memory_bandwidth_bytes_per_s
        stages.append(
            StagePlan(
                worker=node.name,
                start=start,
                end=end,
                embedding=embedding,
                head=head,
                weight_bytes=costs.weight_bytes(model, start, end, embedding=embedding, head=head),
                kv_bytes=kv_per_token * kv_tokens,
                predicted_compute_s=costs.stage_s(weights_read, kv_read, 1, bandwidth),
            )
        )
        start = end
    return tuple(stages)


def _predict(
    model: ModelFootprint,
    cluster: ClusterSpec,
    stages: tuple[StagePlan, ...],
    squeezed: list[str],
    kv_tokens: int,
) -> Plan:
    hops = costs.trip(tuple(stage.worker for stage in stages), model)
    link_times = [costs.link_s(costs.find_link(cluster, a, b), size) for a, b, size in hops]
    bound_s = sum(stage.predicted_compute_s for stage in stages) + sum(link_times)
    shares = [(stage.predicted_compute_s, f"compute of node {stage.worker}") for stage in stages]
    shares += [(t, f"link {a}-{b}") for t, (a, b, _) in zip(link_times, hops, strict=True)]
    _, largest = max(shares, key=lambda share: share[0])
    return Plan(
        stages=stages,
        predicted_tpot_s=bound_s + len(hops) * costs.HOP_SOFTWARE_S,
        bound_tpot_s=bound_s,
        binding=f"memory of node {squeezed[0]}" if squeezed else largest,
        kv_capacity_tokens=kv_tokens,
    )
