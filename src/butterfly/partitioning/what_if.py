"""What more memory, a better link or a faster node would give: by planning anew for the changed cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

from butterfly.partitioning.costs import COORDINATOR, find_link
from butterfly.partitioning.explain import placement_of
from butterfly.partitioning.planner import plan as make_plan
from butterfly.partitioning.predicting import predict
from butterfly.partitioning.problem import Problem
from butterfly.partitioning.wording import sized
from butterfly.specs import (
    ClusterSpec,
    ComputeProfile,
    LayerProfile,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    Plan,
    PlanConstraints,
    Spec,
    TimeTable,
    WorkloadSpec,
)

MORE_MEMORY_BYTES = 1_000_000_000
WORTH_SAYING = 1.005  # times as fast, by the objective
WORTH_PLANNING = 1.001  # times as fast without moving a layer: a link that helps less is not planned with
MAX_MEMORY_PLANS = 4
MAX_LINK_PLANS = 6
MAX_PLANNED_NODES = 12  # beyond, planning anew takes seconds: the same placement is evaluated


class Change(Spec, frozen=True):
    """A change of the cluster, and what the plan for it would give."""

    what: str
    speedup: float  # today's cost / its cost
    cost_s: float
    predicted_tpot_s: float
    predicted_tokens_per_s: float


def what_if(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec, constraints: PlanConstraints, plan: Plan
) -> tuple[Change, ...]:
    """Return the changes that matter, those that help most first. `plan` is the one for `cluster` as it is.

    Tried: 1 GB more on each node whose memory may bind, each used link with twice the bandwidth or half the latency,
    the slowest node twice as fast. At most `MAX_MEMORY_PLANS` + `MAX_LINK_PLANS` + 1 plans are made.
    """

    def planned(changed: ClusterSpec) -> Plan:
        return make_plan(model, changed, workload, constraints)

    def same_placement(changed: ClusterSpec) -> Plan:
        problem = Problem.of(model, changed, workload, PlanConstraints())
        return predict(problem, placement_of(plan, problem), workload)

    is_small = len(cluster.nodes) <= MAX_PLANNED_NODES
    answer = planned if is_small else same_placement
    links = [(same_placement(changed).cost_s, what, changed) for what, changed in _better_links(cluster, plan)]
    helping = sorted((link for link in links if plan.cost_s >= WORTH_PLANNING * link[0]), key=lambda link: link[:2])
    options = [*((what, changed) for _, what, changed in helping[:MAX_LINK_PLANS]), _faster_node(cluster, plan)]
    if is_small:
        options += list(_more_memory(model, cluster, constraints, plan))[:MAX_MEMORY_PLANS]
    changes = [_change(what, answer(changed), plan) for what, changed in options]
    return tuple(sorted((c for c in changes if c.speedup >= WORTH_SAYING), key=lambda c: (-c.speedup, c.what)))


_Option = tuple[str, ClusterSpec]


def _change(what: str, then: Plan, now: Plan) -> Change:
    return Change(
        what=what,
        speedup=now.cost_s / then.cost_s if then.cost_s else 1.0,
        cost_s=then.cost_s,
        predicted_tpot_s=then.predicted_tpot_s,
        predicted_tokens_per_s=then.predicted_tokens_per_s,
    )


# ---------------------------------------------------------------------------------------- memory


def _more_memory(
    model: ModelFootprint, cluster: ClusterSpec, constraints: PlanConstraints, plan: Plan
) -> Iterator[_Option]:
    """Of nodes that do not hold everything anyway: used ones with the least room first, then those left out."""
    stages = {stage.worker: stage for stage in plan.stages}
    everything = sum(model.layer_weight_bytes) + model.embedding_bytes + model.head_bytes
    everything += sum(model.kv_bytes_per_token) * plan.kv_capacity_tokens
    everything += model.border_bytes_per_token * plan.kv_capacity_tokens
    everything += max(stage.activation_bytes for stage in plan.stages)
    small = [node for node in cluster.nodes if node.memory_bytes < everything and node.name not in constraints.exclude]

    def free_bytes(node: NodeSpec) -> int:
        stage = stages.get(node.name)
        return node.memory_bytes - (stage.num_bytes if stage else 0)

    small.sort(key=lambda node: (node.name not in stages, free_bytes(node)))
    for node in small:
        larger = msgspec.structs.replace(node, memory_bytes=node.memory_bytes + MORE_MEMORY_BYTES)
        yield f"{sized(MORE_MEMORY_BYTES)} more memory on {node.name}", _with_node(cluster, larger)


# ----------------------------------------------------------------------------------------- links


def _better_links(cluster: ClusterSpec, plan: Plan) -> Iterator[_Option]:
    names = [COORDINATOR, *(stage.worker for stage in plan.stages), COORDINATOR]
    pairs = dict.fromkeys(tuple(sorted(pair)) for pair in pairwise(names))
    for a, b in pairs:
        yield f"twice the bandwidth between {a} and {b}", _with_link(cluster, a, b, _twice_the_bandwidth)
        yield f"half the latency between {a} and {b}", _with_link(cluster, a, b, _half_the_latency)


def _twice_the_bandwidth(link: LinkSpec) -> LinkSpec:
    return msgspec.structs.replace(link, bandwidth_bytes_per_s=2 * link.bandwidth_bytes_per_s)


def _half_the_latency(link: LinkSpec) -> LinkSpec:
    return msgspec.structs.replace(link, latency_s=link.latency_s / 2)


def _with_link(cluster: ClusterSpec, a: str, b: str, better: Callable[[LinkSpec], LinkSpec]) -> ClusterSpec:
    """Both directions, each from what it is."""
    changed = [
        msgspec.structs.replace(better(find_link(cluster, source, target)), source=source, target=target)
        for source, target in ((a, b), (b, a))
    ]
    others = [link for link in cluster.links if {link.source, link.target} != {a, b}]
    return msgspec.structs.replace(cluster, links=(*changed, *others))


# ----------------------------------------------------------------------------------------- speed


def _faster_node(cluster: ClusterSpec, plan: Plan) -> _Option:
    slowest = max(plan.stages, key=lambda stage: stage.predicted_compute_s).worker
    node = next(node for node in cluster.nodes if node.name == slowest)
    return f"{slowest} twice as fast", _with_node(cluster, _twice_as_fast(node))


def _twice_as_fast(node: NodeSpec) -> NodeSpec:
    profile = node.profile
    if profile is not None:
        layers = tuple(
            LayerProfile(decode=_halved(kind.decode), prefill=_halved(kind.prefill)) for kind in profile.layers
        )
        profile = ComputeProfile(layers=layers, head=_halved(profile.head), step_s=profile.step_s / 2)
    return msgspec.structs.replace(
        node,
        memory_bandwidth_bytes_per_s=2 * node.memory_bandwidth_bytes_per_s,
        flops_per_s=2 * node.flops_per_s,
        profile=profile,
    )


def _halved(table: TimeTable) -> TimeTable:
    rows: Sequence[Sequence[float]] = table.seconds
    return msgspec.structs.replace(table, seconds=tuple(tuple(seconds / 2 for seconds in row) for row in rows))


def _with_node(cluster: ClusterSpec, changed: NodeSpec) -> ClusterSpec:
    nodes = tuple(changed if node.name == changed.name else node for node in cluster.nodes)
    return msgspec.structs.replace(cluster, nodes=nodes)
