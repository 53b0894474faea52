"""`butterfly probe [MODEL]`: what this machine has, what encryption costs on it, and what steps of a model take."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from butterfly import __version__
from butterfly.cli.console import console, errors, format_bytes, loading_progress, set_up_logging
from butterfly.cli.options import Device, DType, LogLevel, Weights, cluster_config
from butterfly.config import ClusterConfig
from butterfly.errors import InfeasiblePlanError
from butterfly.option_values import check_device, parse_bytes, parse_dtype
from butterfly.specs import ComputeDType, ComputeProfile, NodeSpec, Spec, TimeTable, WeightFormat
from butterfly.worker import Report
from butterfly.worker.loopback import LoopbackSpeed, measure_loopback

_NAME = "this machine"  # to the check of what fits, where nobody sees it


class ProbeReport(Spec, frozen=True):
    """What `--json` prints."""

    node: NodeSpec
    loopback: tuple[LoopbackSpeed, ...]  # encrypted, then plain


def probe(
    model: Annotated[
        str,
        typer.Argument(metavar="[MODEL]", help="The model whose steps are measured, as for serve; none: rates only."),
    ] = "",
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: one for each core.")] = 0,
    dtype: DType = "auto",
    weights: Weights = "auto",
    memory: Annotated[str, typer.Option(help="Memory that may be used, such as 300M or 4G; empty: what is free.")] = "",
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again what was measured before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the node and its loopback as JSON.")] = False,
    log_level: LogLevel = "warning",
) -> None:
    """Measure this machine: memory, arithmetic, encryption, and what layers and head of MODEL take."""
    set_up_logging(log_level)
    compute_dtype = parse_dtype(dtype)
    memory_bytes = parse_bytes(memory) if memory else None
    node, rates = measure_node(check_device(device), threads, compute_dtype, memory_bytes)
    loopback = tuple(measure_loopback(encrypt=encrypt) for encrypt in (True, False))
    weight_format: WeightFormat = "int4"
    if model:
        config = cluster_config(model, 1, device, dtype, weights, threads, str(node.memory_bytes), 0)
        node, weight_format = with_profile(node, config, refresh=refresh)
    if as_json:
        console.print(
            msgspec.json.encode(ProbeReport(node=node, loopback=loopback)).decode(), markup=False, soft_wrap=True
        )
        return
    console.print(rates_table(node, rates, loopback))
    if node.profile is not None:
        console.print(f"\n{model}: {compute_dtype}, weights {weight_format}, milliseconds", markup=False)
        console.print(profile_table(node.profile))


def measure_node(
    device: str, threads: int, dtype: ComputeDType, memory_bytes: int | None
) -> tuple[NodeSpec, Mapping[str, float]]:
    """This machine without a profile, and its arithmetic rates by kind of number. Raises ConfigError."""
    import torch  # here: it takes seconds, and a wrong option should not

    from butterfly.engine import resolve_device
    from butterfly.engine.matrix_rates import matrix_rates
    from butterfly.worker.resources import has_int8_instructions, measure_resources

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    target = resolve_device(device)
    resources = measure_resources(str(target), memory_bytes)
    rates = matrix_rates(target, with_int8=target.type == "cpu" and has_int8_instructions())
    node = NodeSpec(
        name=resources.host,
        memory_bytes=resources.memory_bytes,
        memory_bandwidth_bytes_per_s=resources.memory_bandwidth_bytes_per_s,
        device=resources.device,
        flops_per_s=rates["float32" if dtype == "float32" else "bfloat16"],
    )
    return node, rates


def with_profile(node: NodeSpec, config: ClusterConfig, *, refresh: bool) -> tuple[NodeSpec, WeightFormat]:
    """The node with a profile of the model, measured here as a worker would; and what its weights are held as."""
    from butterfly import models
    from butterfly.embedded import building
    from butterfly.engine import resolve_device
    from butterfly.messages import Profile
    from butterfly.worker.engine_profiler import engine_profiler

    model = building.open_model(config, loading_progress)
    weights: WeightFormat = "int4" if config.weights == "auto" else config.weights
    with suppress(InfeasiblePlanError):  # a model too large for this machine alone may have a place on others too
        weights = building.choose_weights(config, model, {_NAME: node.memory_bytes})
    layers, tensors = models.profile_tensors(model)
    request = Profile(epoch=0, model=model.spec, layers=layers, tensors=tensors, dtype=config.dtype, weights=weights)
    profiler = engine_profiler(resolve_device(config.device), node.memory_bytes, __version__, refresh=refresh)
    with _progress_bar(f"measuring {model.display_name}") as report:
        profile = profiler.profile(request, report)
    return msgspec.structs.replace(node, profile=profile), weights


@contextmanager
def _progress_bar(what: str) -> Iterator[Report]:
    """Silent when standard error is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def rates_table(node: NodeSpec, rates: Mapping[str, float], loopback: Sequence[LoopbackSpeed] = ()) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("node", f"{node.name} ({node.device})")
    table.add_row("memory", format_bytes(node.memory_bytes))
    table.add_row("memory bandwidth", f"{node.memory_bandwidth_bytes_per_s / 1e9:.1f} GB/s (one thread)")
    for name, rate in rates.items():
        table.add_row(f"{name} products", f"{rate / 1e9:.0f} Gop/s")
    if "int8" not in rates:
        table.add_row("int8 products", "no instructions for them here: weights int4 only")
    for link in loopback:
        there, back = (rate / 1e9 for rate in link.bytes_per_s)
        speeds = f"{link.latency_s * 1e6:.0f} us for 4 KiB; {there:.2f} GB/s there, {back:.2f} GB/s back"
        table.add_row(f"loopback, {'encrypted' if link.encrypted else 'plain'}", speeds)
    return table


def profile_table(profile: ComputeProfile) -> Table:
    """A row for each part and context, with a column for each number of tokens."""
    kinds = len(profile.layers)
    tables: list[tuple[str, TimeTable]] = []
    for kind, layer in enumerate(profile.layers):
        name = f"layer kind {kind}" if kinds > 1 else "layer"
        tables += [(f"{name}, decode", layer.decode), (f"{name}, prefill", layer.prefill)]
    tables.append(("head", profile.head))
    counts = sorted({count for _, part in tables for count in part.num_tokens})
    shown = Table("part", "context", *(f"{count}" for count in counts), box=None, pad_edge=False)
    for name, part in tables:
        for context, row in zip(part.contexts, part.seconds, strict=True):
            seconds = dict(zip(part.num_tokens, row, strict=True))
            cells = (f"{seconds[count] * 1e3:.3f}" if count in seconds else "" for count in counts)
            shown.add_row(name, str(context), *cells)
    shown.add_row("step", "", f"{profile.step_s * 1e3:.3f}")
    return shown
