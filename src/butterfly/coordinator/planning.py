"""The question for a plan, and its answer: the planner's, of those who stay, under what people asked for."""

from __future__ import annotations

import time
from collections.abc import Collection

from msgspec.structs import replace

from butterfly.cluster import MakePlan, PlanMade, PlanRefused
from butterfly.coordinator.config import CoordinatorConfig
from butterfly.errors import PlanError
from butterfly.partitioning import plan
from butterfly.specs import ClusterSpec, ModelFootprint, PlanConstraints


def answered(wanted: MakePlan, model: ModelFootprint, config: CoordinatorConfig) -> PlanMade | PlanRefused:
    """May take seconds, with dozens of nodes."""
    staying = without(wanted.cluster, wanted.exclude)
    constraints = constraints_among(config.constraints, {node.name for node in staying.nodes})
    try:
        made = plan(model, staying, config.workload, constraints)
    except PlanError as error:
        return PlanRefused(now_s=time.monotonic(), reason=str(error))
    return PlanMade(now_s=time.monotonic(), plan=made)


def without(cluster: ClusterSpec, leaving: Collection[str]) -> ClusterSpec:
    """The cluster as it is when these have left: a refusal is not to advise that they stay."""
    return replace(
        cluster,
        nodes=tuple(node for node in cluster.nodes if node.name not in leaving),
        links=tuple(link for link in cluster.links if not {link.source, link.target} & set(leaving)),
    )


def constraints_among(constraints: PlanConstraints, names: Collection[str]) -> PlanConstraints:
    """What people ask of a plan, as far as it is about workers that are there."""
    return replace(
        constraints,
        layers=tuple(pin for pin in constraints.layers if pin.node in names),
        exclude=tuple(name for name in constraints.exclude if name in names),
    )
