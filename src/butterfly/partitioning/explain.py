"""A plan as a table for people."""

from __future__ import annotations

from butterfly.errors import PlanError
from butterfly.partitioning import costs
from butterfly.specs import ClusterSpec, ModelFootprint, Plan

_HEADINGS = ("worker", "layers", "ends", "weights", "KV", "memory", "compute")


def explain(plan: Plan, model: ModelFootprint, cluster: ClusterSpec) -> str:
    """Return a table of stages, then the predictions and what binds. No trailing newline.

    Raises PlanError when the plan names a node that the cluster does not have.
    """
    nodes = {node.name: node for node in cluster.nodes}
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for stage in plan.stages:
        if stage.worker not in nodes:
            raise PlanError(f"the plan names node {stage.worker}, which is not in the cluster")
        ends = " + ".join(name for name, has in (("embedding", stage.embedding), ("head", stage.head)) if has)
        rows.append(
            (
                stage.worker,
                f"{stage.start}-{stage.end - 1} ({stage.num_layers})",
                ends or "-",
                _mb(stage.weight_bytes),
                _mb(stage.kv_bytes),
                f"{(stage.weight_bytes + stage.kv_bytes) / nodes[stage.worker].memory_bytes:.0%} "
                f"of {_mb(nodes[stage.worker].memory_bytes)}",
                _ms(stage.predicted_compute_s),
            )
        )
    hops = costs.trip_links(plan, model, cluster)
    links = ", ".join(f"{link.source}-{link.target} {_ms(seconds)}" for link, seconds in hops)
    return "\n".join(
        [
            *_table(rows),
            f"links: {links}",
            f"one token: {_ms(plan.predicted_tpot_s)} predicted, {_ms(plan.bound_tpot_s)} without software "
            f"({len(hops)} hops x {_ms(costs.HOP_SOFTWARE_S)})",
            f"KV cache: {plan.kv_capacity_tokens} tokens on every stage",
            f"bound by: {plan.binding}",
        ]
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
