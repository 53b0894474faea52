"""`butterfly plan MODEL`: where the layers would go on a cluster, how fast that would be, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from butterfly import models
from butterfly.cli.console import console, loading_progress
from butterfly.cli.options import (
    DType,
    Exclude,
    Layers,
    MeanContext,
    ModelArgument,
    ObjectiveOption,
    plan_constraints,
)
from butterfly.cli.plan_fleet import ServeOptions, tell_fleet
from butterfly.cluster_file import read_cluster
from butterfly.config import DEFAULT_CONTEXT
from butterfly.errors import ConfigError
from butterfly.option_values import parse_dtype, parse_weights
from butterfly.partitioning import explain
from butterfly.partitioning import plan as make_plan
from butterfly.partitioning.policies import PolicyResult, compare
from butterfly.partitioning.replicas import Fleet, plan_replicas
from butterfly.partitioning.what_if import Change, what_if
from butterfly.specs import (
    ClusterSpec,
    ModelFootprint,
    NodeSpec,
    Plan,
    Spec,
    WorkloadSpec,
)
from butterfly.worker.resources import measure_resources

_PICTURE_SUFFIXES = (".svg", ".png")

Cluster = Annotated[
    Path | None, typer.Option("--cluster", help="The cluster, a file such as cluster.toml; this machine if not given.")
]
Concurrency = Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Streams at once, with KV cache for all.")]
Context = Annotated[int, typer.Option(min=0, help="Tokens of each stream at most; 0 is the model's, up to 4096.")]
MaxNodes = Annotated[int, typer.Option("--max-nodes", min=0, help="Nodes that hold layers at most; 0: any number.")]
PlanWeights = Annotated[
    str, typer.Option("--weights", help="What quantised matrices are held as: auto (int4), int4, int8 or mixed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print plan, comparison and changes as JSON.")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Put simple policies beside it: even, by memory, by FLOPS, ...")
]
WhatIf = Annotated[
    bool, typer.Option("--what-if/--no-what-if", help="Say what more memory, better links, a faster node would give.")
]
Picture = Annotated[Path | None, typer.Option("--picture", help="Draw the plan into this .svg or .png file.")]


Replicas = Annotated[
    int,
    typer.Option(
        "--replicas",
        min=0,
        help="Part the nodes into so many pipelines at most, each with the whole model; 0: as many as pay. "
        "Needs --objective throughput.",
    ),
]


class PlanReport(Spec, frozen=True):
    """What `--json` prints."""

    plan: Plan
    fleet: Fleet | None = None  # with --replicas
    comparison: tuple[PolicyResult, ...] = ()
    what_if: tuple[Change, ...] = ()


def plan(
    model: ModelArgument,
    cluster: Cluster = None,
    objective: ObjectiveOption = "latency",
    concurrency: Concurrency = 1,
    context: Context = 0,
    mean_context: MeanContext = 0,
    max_nodes: MaxNodes = 0,
    replicas: Replicas = 1,
    layers: Layers = None,
    exclude: Exclude = None,
    weights: PlanWeights = "auto",
    dtype: DType = "auto",
    as_json: AsJson = False,
    compared: Compare = False,
    changes: WhatIf = True,
    picture: Picture = None,
) -> None:
    """Show where each layer of MODEL would go on a cluster, how fast that would be, and why. Starts nothing."""
    check_picture(picture)
    if replicas != 1 and objective != "throughput":
        raise ConfigError("--replicas is for the speed of all streams together: add --objective throughput")
    constraints = plan_constraints(layers, exclude, max_nodes=max_nodes)
    nodes = this_machine() if cluster is None else read_cluster(cluster)
    footprint = open_footprint(model, weights, dtype)
    workload = WorkloadSpec(
        concurrency=concurrency,
        context=context or min(footprint.max_context, DEFAULT_CONTEXT),
        mean_context=mean_context,
        objective=objective,
    )
    made = make_plan(footprint, nodes, workload, constraints)
    report = PlanReport(
        plan=made,
        fleet=None if replicas == 1 else plan_replicas(footprint, nodes, workload, constraints, replicas),
        comparison=compare(footprint, nodes, workload, constraints) if compared else (),
        what_if=what_if(footprint, nodes, workload, constraints, made) if changes else (),
    )
    if as_json:
        console.print(msgspec.json.encode(report).decode(), markup=False, soft_wrap=True)
    else:
        tell(report, explain(made, footprint, nodes, constraints))
        if report.fleet is not None:
            tell_fleet(report.fleet, ServeOptions(model, workload.context, weights, dtype))
    if picture is not None:
        draw(made, footprint, nodes, picture)


def this_machine() -> ClusterSpec:
    """Measured now: its free memory, and how fast that can be read."""
    found = measure_resources()
    node = NodeSpec(
        name=found.host,
        memory_bytes=found.memory_bytes,
        memory_bandwidth_bytes_per_s=found.memory_bandwidth_bytes_per_s,
        device=found.device,
    )
    return ClusterSpec(nodes=(node,))


def open_footprint(reference: str, weights: str, dtype: str) -> ModelFootprint:
    """Sizes of the model as its weights would be held. Raises ModelError, ConfigError."""
    chosen = parse_weights(weights)
    computed_in = parse_dtype(dtype)
    with loading_progress() as progress:
        model = models.open_model(reference, progress=progress.download, dtype=computed_in)
    return models.with_weights(model, computed_in, "int4" if chosen == "auto" else chosen).footprint


# --------------------------------------------------------------------------------------- printing


def tell(report: PlanReport, explained: str) -> None:
    """The explanation, then what else was asked for."""
    console.print(explained, markup=False, soft_wrap=True)
    if report.comparison:
        console.print()
        console.print(comparison_table(report.plan, report.comparison))
    if report.what_if:
        console.print()
        console.print(changes_table(report.what_if))


def comparison_table(plan: Plan, comparison: tuple[PolicyResult, ...]) -> Table:
    """Our plan first; cost: by the objective, as a multiple of ours."""
    table = Table("policy", "layers", "TTFT", "TPOT", "tokens/s", "cost", box=None, pad_edge=False)
    for name, other, reason in (("this plan", plan, ""), *((r.name, r.plan, r.reason) for r in comparison)):
        if other is None:
            table.add_row(name, f"({reason})", "-", "-", "-", "-")
            continue
        table.add_row(
            name,
            " + ".join(f"{stage.worker} {stage.num_layers}" for stage in other.stages),
            f"{other.predicted_ttft_s * 1e3:.1f} ms",
            f"{other.predicted_tpot_s * 1e3:.2f} ms",
            f"{other.predicted_tokens_per_s:.1f}",
            f"{other.cost_s / plan.cost_s:.2f}x",
        )
    return table


def changes_table(changes: tuple[Change, ...]) -> Table:
    table = Table("with", "TPOT", "tokens/s", "speed-up", box=None, pad_edge=False)
    for change in changes:
        table.add_row(
            change.what,
            f"{change.predicted_tpot_s * 1e3:.2f} ms",
            f"{change.predicted_tokens_per_s:.1f}",
            f"{change.speedup:.2f}x",
        )
    return table


# ---------------------------------------------------------------------------------------- picture


def check_picture(picture: Path | None) -> None:
    """Raises ConfigError for what cannot be drawn, before anything is planned."""
    if picture is not None and picture.suffix not in _PICTURE_SUFFIXES:
        raise ConfigError(f"--picture {picture}: the name must end in {' or '.join(_PICTURE_SUFFIXES)}")


def draw(made: Plan, footprint: ModelFootprint, nodes: ClusterSpec, picture: Path) -> None:
    """Raises ConfigError when there is no matplotlib, or the file cannot be written."""
    try:
        from butterfly.cli.plan_picture import draw_plan
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--picture needs {error.name}, which is not installed: pip install 'butterfly-inference[plots]'"
        ) from error
    try:
        draw_plan(made, footprint, nodes, picture)
    except OSError as error:
        raise ConfigError(f"cannot write {picture}: {error.strerror}; check --picture") from error
