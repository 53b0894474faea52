"""Random planner problems, small enough to try every placement."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations
from random import Random
from typing import Literal, NamedTuple, get_args

import msgspec
from hypothesis import strategies as st

from butterfly.partitioning.costs import COORDINATOR
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import (
    ClusterSpec,
    ComputeProfile,
    LayerPin,
    LayerProfile,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    Objective,
    PlanConstraints,
    TimeTable,
    WorkloadSpec,
)

Layers = Literal["alike", "different"]


class Case(NamedTuple):
    """What a problem is made of, so that a test can change a part."""

    model: ModelFootprint
    cluster: ClusterSpec
    workload: WorkloadSpec
    constraints: PlanConstraints

    def problem(self) -> Problem:
        return Problem.of(*self)

    def with_nodes(self, *nodes: NodeSpec) -> Case:
        return self._replace(cluster=msgspec.structs.replace(self.cluster, nodes=nodes))


@st.composite
def cases(
    draw: st.DrawFn, layers: Layers, *, most_nodes: int = 4, most_layers: int = 7, constrained: bool = False
) -> Case:
    """Nodes and layers in few enough sizes that some tie, memory about what is needed, links that may bind."""
    num_nodes, num_layers = draw(st.integers(1, most_nodes)), draw(st.integers(1, most_layers))
    objective = draw(st.sampled_from(get_args(Objective)))
    return random_case(draw(st.integers(0, 2**32)), num_nodes, num_layers, layers, objective, constrained=constrained)


def any_cases(*, most_nodes: int = 4, most_layers: int = 7, constrained: bool = False) -> st.SearchStrategy[Case]:
    """With layers of either kind."""
    alike, different = (
        cases(layers, most_nodes=most_nodes, most_layers=most_layers, constrained=constrained)
        for layers in get_args(Layers)
    )
    return alike | different


def random_case(
    seed: int, num_nodes: int, num_layers: int, layers: Layers, objective: Objective, *, constrained: bool = False
) -> Case:
    """The same case for the same arguments."""
    random = Random(seed)
    num_kinds = 1 if layers == "alike" else random.randint(1, 3)
    model = _model(random, num_layers, layers, num_kinds)
    workload = WorkloadSpec(
        concurrency=random.choice([1, 2, 3, 5, 8]),
        context=random.choice([2, 16]),
        objective=objective,
        max_num_batched_tokens=random.choice([1, 8]),
    )
    kv_tokens = workload.total_kv_tokens(workload.context)
    needed = model.embedding_bytes + model.head_bytes + kv_tokens * sum(model.kv_bytes_per_token)
    share = (needed + sum(model.layer_weight_bytes)) / num_nodes
    nodes = tuple(_node(random, f"n{i}", share, num_kinds) for i in range(num_nodes))
    links = tuple(_links(random, [*(node.name for node in nodes), COORDINATOR]))
    constraints = _constraints(random, nodes, num_layers) if constrained else PlanConstraints()
    return Case(model, ClusterSpec(nodes=nodes, links=links), workload, constraints)


def _model(random: Random, num_layers: int, layers: Layers, num_kinds: int) -> ModelFootprint:
    kinds = tuple(random.randrange(num_kinds) for _ in range(num_layers))
    by_kind = [(random.randint(20, 100), random.choice([0, 1, 4])) for _ in range(num_kinds)]
    sizes = [by_kind[kind] for kind in kinds]
    if layers == "different" and random.random() < 0.5:  # sizes that no kind explains
        sizes = [(weights + random.randint(0, 50), kv) for weights, kv in sizes]
    return ModelFootprint(
        layer_weight_bytes=tuple(weights for weights, _ in sizes),
        embedding_bytes=random.choice([0, 0, 60, 200]),
        head_bytes=random.choice([0, 40, 150]),
        kv_bytes_per_token=tuple(kv for _, kv in sizes),
        max_context=random.choice([8, 64]),
        hidden_bytes_per_token=random.choice([8, 64]),
        layer_kinds=kinds if num_kinds > 1 else (),
        num_layer_params=tuple(weights for weights, _ in sizes) if random.random() < 0.3 else (),
        activation_bytes_per_token=random.choice([0, 0, 3]),
    )


def _node(random: Random, name: str, share_bytes: float, num_kinds: int) -> NodeSpec:
    return NodeSpec(
        name=name,
        memory_bytes=int(share_bytes * random.choice([0.6, 1.0, 1.5, 1.5, 3.0, 8.0])) + 1,
        memory_bandwidth_bytes_per_s=random.choice([1e3, 2e3, 2e3, 1e4]),
        flops_per_s=random.choice([0.0, 1e4, 1e5]),
        profile=_profile(random, num_kinds) if random.random() < 0.4 else None,
    )


def _profile(random: Random, num_kinds: int) -> ComputeProfile:
    def table(scale_s: float, contexts: tuple[int, ...]) -> TimeTable:
        base_s = scale_s * random.choice([0.0, 0.5, 1.0, 2.0])
        rows = [tuple(base_s * (1 + 0.2 * tokens + 0.01 * context) for tokens in (1, 4)) for context in contexts]
        return TimeTable(num_tokens=(1, 4), contexts=contexts, seconds=tuple(rows))

    layers = tuple(LayerProfile(decode=table(0.05, (0, 8)), prefill=table(0.05, (0,))) for _ in range(num_kinds))
    return ComputeProfile(layers=layers, head=table(0.05, (0,)), step_s=random.choice([0.0, 0.01]))


def _links(random: Random, names: list[str]) -> Iterator[LinkSpec]:
    """Some pairs are measured one way only, some not at all; slow ones take longer than stages."""
    for source, target in permutations(names, 2):
        if random.random() < 0.8:
            yield LinkSpec(
                source=source,
                target=target,
                latency_s=random.choice([0.0, 0.001, 0.01, 0.1]),
                bandwidth_bytes_per_s=random.choice([1e2, 4e2, 2e3, 1e5]),
                software_s=random.choice([0.0, 0.0004]),
            )


def _constraints(random: Random, nodes: tuple[NodeSpec, ...], num_layers: int) -> PlanConstraints:
    cuts = sorted(random.sample(range(num_layers + 1), min(num_layers + 1, random.choice([0, 2, 2, 2, 4]))))
    names = [node.name for node in random.sample(nodes, len(nodes))]
    ranges = zip(names, cuts[::2], cuts[1::2], strict=False)
    return PlanConstraints(
        layers=tuple(LayerPin(node=node, start=start, end=end) for node, start, end in ranges),
        exclude=tuple(names[-1:]) if len(names) > 2 and random.random() < 0.2 else (),
        max_nodes=random.choice([0, 0, 0, 1, 2, 3]),
        use_all=random.random() < 0.1,
    )


def every_placement(problem: Problem) -> Iterator[Placement]:
    """All that fit."""
    for num_stages in range(problem.min_stages, problem.max_stages + 1):
        for cuts in combinations(range(1, problem.num_layers), num_stages - 1):
            for nodes in permutations(range(problem.num_nodes), num_stages):
                placement = Placement(nodes, (*cuts, problem.num_layers))
                if problem.fits(placement):
                    yield placement


def least_cost_s(problem: Problem) -> float:
    """The cost of the cheapest placement by trying all of them; infinite when none fits."""
    return min((problem.evaluate(placement).cost_s for placement in every_placement(problem)), default=float("inf"))
