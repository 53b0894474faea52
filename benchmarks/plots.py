"""The pictures of a record: ratios, throughput by streams, time per token by link, kernels on a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.hardware import KernelPoint, ThreadRates
from benchmarks.record import ONE_NODE, OURS, PEER, Record, ScenarioRecord, Verdict, figure, verdicts
from benchmarks.scenarios import LoadShape

COLOURS = {
    OURS: "#1f5fa8",
    ONE_NODE: "#8fb3dc",
    PEER: "#c8641e",
    "bound": "#555555",
    "met": "#2e7d4f",
    "missed": "#b3372f",
}
KERNEL_COLOURS = ("#1f5fa8", "#c8641e", "#8a8a8a", "#2e7d4f")
DPI = 130
WIDEST = 4.0  # times the target: longer bars say no more
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "axes.titlesize": 9,
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def write_plots(record: Record, folder: Path, stem: str) -> list[Path]:
    """Write those pictures for which the record has data; return their paths."""
    plots = {
        "targets": targets_plot,
        "throughput": throughput_plot,
        "time-per-token": time_per_token_plot,
        "roofline": roofline_plot,
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in plots.items():
            if (canvas := draw(record)) is not None:
                path = folder / f"{stem}_{name}.png"
                canvas.savefig(path, dpi=DPI, metadata={"Software": None})
                written.append(path)
    return written


def _canvas(num_plots: int, width: float, height: float, columns: int = 2) -> tuple[Canvas, list[Axes]]:
    """A canvas with so many axes, `columns` side by side."""
    columns = min(columns, num_plots)
    rows = -(-num_plots // columns)
    canvas = Canvas(figsize=(width * columns, height * rows), layout="constrained")
    return canvas, [canvas.add_subplot(rows, columns, index + 1) for index in range(num_plots)]


def targets_plot(record: Record) -> Canvas | None:
    """Each target as a bar of measured / wanted; times are turned round, so that right of 1 is always met."""
    found = verdicts(record)
    if not found:
        return None
    canvas, [axes] = _canvas(1, 8.0, 0.9 + 0.34 * len(found))
    reached = [_reached(verdict) for verdict in found]
    positions = range(len(found))
    colours = [COLOURS["met" if verdict.is_met else "missed"] for verdict in found]
    axes.barh(positions, [min(value, WIDEST) for value in reached], color=colours, height=0.6)
    axes.axvline(1.0, color="black", linewidth=1.2)
    for position, verdict, value in zip(positions, found, reached, strict=True):
        axes.text(min(value, WIDEST) + 0.03, position, _label(verdict), va="center", fontsize=8)
    axes.set_yticks(positions, [verdict.target.what for verdict in found])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(1.4, 1.25 * min(WIDEST, max(reached))))
    axes.set_xlabel("measured / wanted (1: target reached)")
    return canvas


def _reached(verdict: Verdict) -> float:
    measured, wanted = verdict.measured.median, verdict.target.value
    if verdict.target.better == "lower":
        return wanted / measured if measured else WIDEST
    return measured / wanted


def _label(verdict: Verdict) -> str:
    measured, target = verdict.measured.median, verdict.target
    if target.against == "absolute":
        return f"{measured * 1e3:.2f} ms, wanted {target.value * 1e3:.1f}"
    return f"{measured:.2f}x, wanted {target.value:g}"


def throughput_plot(record: Record) -> Canvas | None:
    """Output tokens per second by number of streams, one picture per scenario."""
    shown = [done for done in record.scenarios if len(_streams(done)) > 1 and done.arm(OURS)]
    if not shown:
        return None
    canvas, plots = _canvas(len(shown), 4.2, 3.0)
    for axes, done in zip(plots, shown, strict=True):
        loads = _streams(done)
        counts = [load.concurrency for load in loads]
        bounds = [done.bounds[load.name].rate for load in loads]
        axes.plot(counts, bounds, color=COLOURS["bound"], linestyle="--", label="bound")
        for arm in (ONE_NODE, OURS, PEER):
            _line_with_spread(axes, done, arm, loads)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_ylim(bottom=0)
        axes.set_title(done.scenario.name)
        axes.set_xlabel("streams")
        axes.set_ylabel("output tokens/s of all")
    plots[0].legend()
    return canvas


def _streams(done: ScenarioRecord) -> list[LoadShape]:
    return [load for load in done.scenario.loads if load.kind == "streams" and load.name in done.bounds]


def _line_with_spread(axes: Axes, done: ScenarioRecord, arm: str, loads: Sequence[LoadShape]) -> None:
    found = [(load.concurrency, measured) for load in loads if (measured := figure(done, arm, load))]
    if not found:
        return
    counts, figures = [count for count, _ in found], [measured for _, measured in found]
    medians = [measured.median for measured in figures]
    below = [measured.median - measured.low for measured in figures]
    above = [measured.high - measured.median for measured in figures]
    axes.errorbar(
        counts, medians, yerr=[below, above], color=COLOURS[arm], marker="o", markersize=4, capsize=3, label=arm
    )


def time_per_token_plot(record: Record) -> Canvas | None:
    """TPOT of one stream over each link, beside its bound."""
    shown = [done for done in record.scenarios if done.scenario.link and _decode(done) and done.arm(OURS)]
    if not shown:
        return None
    canvas, [axes] = _canvas(1, 8.0, 0.9 + 0.6 * len(shown))
    thickness = 0.36
    for index, arm in enumerate((OURS, PEER)):
        times = [(position, _tpot_ms(done, arm)) for position, done in enumerate(shown)]
        known = [(position, time) for position, time in times if time is not None]
        if known:
            places = [position + (index - 0.5) * thickness for position, _ in known]
            axes.barh(places, [time for _, time in known], height=thickness, color=COLOURS[arm], label=arm)
    for position, done in enumerate(shown):
        bound_ms = done.bounds[_decode(done).name].tpot_s * 1e3  # type: ignore[union-attr]
        label = "bound" if position == 0 else None
        axes.plot([bound_ms] * 2, [position - 0.42, position + 0.42], color="black", linewidth=2, label=label)
    axes.set_yticks(range(len(shown)), [done.scenario.name for done in shown])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("time per output token of one stream, ms")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    return canvas


def _decode(done: ScenarioRecord) -> LoadShape | None:
    return next((load for load in done.scenario.loads if load.kind == "decode" and load.name in done.bounds), None)


def _tpot_ms(done: ScenarioRecord, arm: str) -> float | None:
    load = _decode(done)
    measured = figure(done, arm, load) if load else None
    return 1e3 / measured.median if measured and measured.median else None


def roofline_plot(record: Record) -> Canvas | None:
    """Rates of the kernels against operations per byte of weights, below what memory and arithmetic allow."""
    rates = [rates for rates in record.machine.rates if rates.kernels]
    if not rates:
        return None
    canvas, plots = _canvas(len(rates), 4.2, 3.2)
    for axes, measured in zip(plots, rates, strict=True):
        _roof(axes, measured)
        kernels = dict.fromkeys(point.kernel for point in measured.kernels)
        for kernel, colour in zip(kernels, KERNEL_COLOURS, strict=False):
            _kernel(axes, [point for point in measured.kernels if point.kernel == kernel], colour)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{measured.threads} thread{'s' if measured.threads > 1 else ''} (numbers: rows)")
        axes.set_xlabel("operations per byte of weights")
        axes.set_ylabel("Gflop/s")
    plots[0].legend(loc="lower right")
    return canvas


def _roof(axes: Axes, measured: ThreadRates) -> None:
    """Memory's slope up to where arithmetic takes over, then flat."""
    knee = measured.product_flops_per_s / measured.read_bytes_per_s
    intensities = sorted([knee, *(point.flops / point.weight_bytes for point in measured.kernels)])
    roof = [min(measured.product_flops_per_s, value * measured.read_bytes_per_s) / 1e9 for value in intensities]
    axes.plot(
        intensities, roof, color=COLOURS["bound"], linestyle="--", label="bound: memory, then the fastest product"
    )


def _kernel(axes: Axes, points: Sequence[KernelPoint], colour: str) -> None:
    xs, ys = [point.flops / point.weight_bytes for point in points], [point.flops_per_s / 1e9 for point in points]
    axes.plot(xs, ys, color=colour, marker="o", markersize=4, label=points[0].kernel)
    for point, x, y in zip(points, xs, ys, strict=True):
        axes.annotate(str(point.rows), (x, y), textcoords="offset points", xytext=(5, -9), fontsize=7)
