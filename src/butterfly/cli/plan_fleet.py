"""Several pipelines for people: what each holds and gives, and how to run them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from rich.table import Table

from butterfly.cli.console import console, format_layers
from butterfly.partitioning.replicas import Fleet
from butterfly.specs import Plan

_FIRST_PORT = 8000
_FIRST_LISTEN_PORT, _LISTEN_PORTS = 7700, 2  # a server listens at this port and the next one


@dataclass(frozen=True)
class ServeOptions:
    """What every pipeline's `butterfly serve` gets, as it was given to `butterfly plan`."""

    model: str
    context: int
    weights: str
    dtype: str


def tell_fleet(fleet: Fleet, options: ServeOptions) -> None:
    """The pipelines, their figures together, and a line to start each; or that one pipeline is as fast."""
    console.print()
    console.print(fleet_summary(fleet), markup=False, soft_wrap=True)
    if len(fleet.pipelines) == 1:
        return
    console.print(fleet_table(fleet))
    if fleet.left_out:
        console.print(f"left out: {', '.join(fleet.left_out)}", markup=False, soft_wrap=True)
    shares = ":".join(str(one.concurrency) for one in fleet.pipelines)
    console.print(
        f"\nEach pipeline is a server of its own, and nothing here shares requests between them: put a proxy with the "
        f"weights {shares} before them. A server prints the line with which its nodes join it, and only they should: "
        "butterfly worker --join LINE --name NODE",
        markup=False,
        soft_wrap=True,
    )
    for number, one in enumerate(fleet.pipelines):
        console.print(f"  {serve_line(one, options, number)}", markup=False, soft_wrap=True)


def fleet_summary(fleet: Fleet) -> str:
    """How many pipelines, what they give, and what is proven."""
    count = len(fleet.pipelines)
    streams = sum(one.concurrency for one in fleet.pipelines)
    proof = (
        "proven optimal"
        if fleet.gap == 0
        else f"another partition gives {fleet.bound_tokens_per_s:.1f} at most (gap {fleet.gap:.1%})"
    )
    if count == 1:
        return f"replicas: no partition into several pipelines is faster than one pipeline; {proof}"
    single = f"one pipeline gives {fleet.single_tokens_per_s:.1f}"
    return (
        f"replicas: {count} pipelines give {fleet.predicted_tokens_per_s:.1f} tokens/s with {streams} streams, "
        f"{single}; {proof}"
    )


def fleet_table(fleet: Fleet) -> Table:
    table = Table("pipeline", "layers", "streams", "TTFT", "TPOT", "tokens/s", box=None, pad_edge=False)
    for number, one in enumerate(fleet.pipelines, start=1):
        stages = (
            f"{stage.worker} {format_layers(stage.start, stage.end, embedding=stage.embedding, head=stage.head)}"
            for stage in one.stages
        )
        table.add_row(
            str(number),
            "\n".join(stages),
            str(one.concurrency),
            f"{one.predicted_ttft_s * 1e3:.1f} ms",
            f"{one.predicted_tpot_s * 1e3:.2f} ms",
            f"{one.predicted_tokens_per_s:.1f}",
        )
    return table


def serve_line(plan: Plan, options: ServeOptions, number: int) -> str:
    """The command that serves this pipeline as it is planned, for a shell; `number` counts from 0."""
    listen = f"0.0.0.0:{_FIRST_LISTEN_PORT + number * _LISTEN_PORTS}"
    words = ["butterfly", "serve", options.model, "--workers", "0", "--listen", listen]
    words += ["--port", str(_FIRST_PORT + number), "--objective", "throughput"]
    words += ["--max-sequences", str(plan.concurrency), "--context", str(options.context)]
    for name, value in (("--weights", options.weights), ("--dtype", options.dtype)):
        words += [name, value] if value != "auto" else []
    for stage in plan.stages:
        words += ["--layers", f"{stage.worker}={stage.start}:{stage.end}"]
    return shlex.join(words)
