"""From a record to a page with tables, a plot, and the JSON itself."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import msgspec

from benchmarks.planning.record import PLANNED, ClusterRecord, PlanningRecord, PlanRecord
from benchmarks.report import machine_text
from benchmarks.tables import markdown
from butterfly.specs import Plan

THEME = "planning"
METHOD = """\
On each emulated cluster the product starts, measures nodes and links, and plans. The simple policies plan from the same
measurements, and each placement that differs is served by the same runtime on the same nodes, its layers pinned. One
server runs at a time, since idle ones would take a slow node's time, with coordinator and API on a node of their own;
{rounds} rounds; figures are medians. TPOT is of a single stream, TTFT of one prompt of up to 512 tokens, tokens/s of
all streams. Every server measures its nodes anew when it starts, and predictions are the planner's from that
measurement, for the contexts that the loads have; errors are of *every* placement, good or bad. The ratio compares
tokens/s (or 1 / TPOT where the objective is latency) of our plan with the policy's."""


def write_results(record: PlanningRecord, folder: Path) -> Path:
    """Write JSON, page and picture into the folder; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{THEME}_{record.machine.slug}_{record.created[:7].replace('-', '')}"
    encoded = msgspec.json.format(msgspec.json.encode(record), indent=1)
    (folder / f"{stem}.json").write_bytes(encoded + b"\n")
    picture = folder / f"{stem}.png"
    write_plot(record, picture)
    log = folder / f"{THEME}_log.md"
    target = folder / f"{stem}.md"
    target.write_text(page(record, picture.name, log.read_text() if log.is_file() else ""))
    return target


def page(record: PlanningRecord, picture: str, log: str) -> str:
    parts = [
        f"# Planning: predicted and measured, and our plan beside simple policies, {record.created}",
        machine_text(record.machine),
        "## Method",
        METHOD.format(rounds=record.rounds),
        "## Predictions",
        accuracy(record),
        "## Plans",
        f"![ratios and errors]({picture})",
        *(cluster_section(one) for one in record.clusters),
    ]
    return "\n\n".join(part for part in [*parts, log.strip()] if part) + "\n"


def accuracy(record: PlanningRecord) -> str:
    rows = []
    for what in ("tpot_s", "ttft_s"):
        errors = record.errors(what)
        if errors:
            rows.append(
                [
                    what.removesuffix("_s").upper(),
                    str(len(errors)),
                    f"{median(errors):.1%}",
                    f"{max(errors):.1%}",
                    "median 10 %, worst 20 %",
                ]
            )
    return markdown(("what", "placements", "median error", "worst", "wanted"), rows)


def cluster_section(record: ClusterRecord) -> str:
    asked = record.cluster
    title = f"### {asked.name}\n\n{asked.what}; {asked.model}, objective {asked.objective}."
    if record.failure:
        return f"{title}\n\nNot measured: {record.failure}"
    header = (
        "placement",
        "chosen by",
        "TPOT ms",
        "predicted",
        "TTFT s",
        "predicted",
        "tok/s",
        "predicted",
        "ours / it",
    )
    rows = [_row(record, plan) for plan in record.plans]
    refused = "".join(f"\n- no placement: {reason}" for reason in record.refused)
    return f"{title}\n\n{markdown(header, rows)}{refused}"


def _row(record: ClusterRecord, plan: PlanRecord) -> list[str]:
    names = ", ".join("**ours**" if name == PLANNED else name for name in plan.policies)
    if not plan.measurements:
        return [words(plan.plan), names, *[""] * 6, plan.failure]
    return [
        words(plan.plan),
        names,
        f"{plan.median('tpot_s') * 1e3:.1f}",
        f"{plan.median('predicted_tpot_s') * 1e3:.1f} ({plan.error('tpot_s'):+.0%})",
        f"{plan.median('ttft_s'):.2f}",
        f"{plan.median('predicted_ttft_s'):.2f} ({plan.error('ttft_s'):+.0%})",
        f"{plan.median('tokens_per_s'):.1f}",
        f"{plan.median('predicted_tokens_per_s'):.1f}",
        f"{advantage(record, plan):.2f}",
    ]


def advantage(record: ClusterRecord, plan: PlanRecord) -> float:
    """How much faster our plan was than this one, in what the objective asks for."""
    ours = record.plans[0]
    if record.cluster.objective == "latency":
        return plan.median("tpot_s") / ours.median("tpot_s")
    return ours.median("tokens_per_s") / plan.median("tokens_per_s")


def words(plan: Plan) -> str:
    return " ".join(f"{stage.worker.removeprefix('worker-')}:{stage.num_layers}" for stage in plan.stages)


def write_plot(record: PlanningRecord, target: Path) -> None:
    """Left: our plan's advantage over each policy. Right: predicted against measured."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    from benchmarks.plots import DPI, STYLE

    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(11, 5), layout="constrained")
        bars, points = canvas.subplots(1, 2)
        labels, values = [], []
        for one in record.clusters:
            for plan in one.plans[1:]:
                if plan.measurements and one.plans[0].measurements:
                    labels.append(f"{one.cluster.name}: {', '.join(plan.policies)}")
                    values.append(advantage(one, plan))
        bars.barh(range(len(values)), values, color=["#2e7d4f" if value >= 1 else "#b3372f" for value in values])
        bars.set_yticks(range(len(labels)), labels, fontsize=7)
        bars.invert_yaxis()
        bars.axvline(1.0, color="#555555", linewidth=0.8)
        bars.set_title("our plan / the policy's, in what was asked for")
        for what, colour in (("tpot_s", "#1f5fa8"), ("ttft_s", "#c8641e")):
            plans = [plan for one in record.clusters for plan in one.plans if plan.measurements]
            points.scatter(
                [plan.median(what) for plan in plans],
                [plan.median(f"predicted_{what}") for plan in plans],
                s=14,
                color=colour,
                label=what.removesuffix("_s").upper(),
            )
        points.set_xscale("log")
        points.set_yscale("log")
        ends = points.get_xlim()
        points.plot(ends, ends, color="#555555", linewidth=0.8)
        points.set_xlabel("measured, s")
        points.set_ylabel("predicted, s")
        points.legend()
        canvas.savefig(target, dpi=DPI)
