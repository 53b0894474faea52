"""From a record to a page, its plots and README's table.

`python -m benchmarks.report RECORD.json` writes page and plots beside the JSON; with --readme it also replaces what
stands between the two markers in README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import tables
from benchmarks.hardware import Machine
from benchmarks.record import OURS, PEER, Record, ScenarioRecord, figure
from benchmarks.scenarios import Scenario

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"
README_LOADS = ("decode", "prefill-512", "streams-16")
MODEL_NAMES = {"smollm2": "SmolLM2-135M (Q4_1)", "llama-1b": "a synthetic 1.07B Llama (Q4_0)"}

METHOD = """\
In each of {rounds} rounds every load is measured once on every arm, in turn and in changing order, with all servers
alive; figures are medians, spreads the least and largest round, ratios those of medians. Requests come from
`butterfly bench`, with the same prompts of random tokens to every arm; prefix caches are off. *decode* is 1 / TPOT of a
single stream, *prefill* the prompt's tokens / TTFT, *streams-N* the output tokens per second of N readers, prompts
included in the time.

The bound is what no implementation can beat: stored bytes of weights and KV cache over the memory's bandwidth,
operations over the rate of the fastest products (of 8-bit integers, where the CPU has them), links as configured, the
best cut at whole layers; `benchmarks/bounds.py` says it in full. Bandwidth and rates are measured before and after
the loads, with as many threads as a node has; the best counts. Emulated nodes have a core and links of their own, or a
share of a core where this machine has too few; the network is measured first, and a scenario whose network is not as
asked for is not reported. SmolLM2 fits into large caches, so it may come nearer to its bound, or beyond it, than a
model that must be read from memory."""


def write_results(record: Record, folder: Path, *, plots: bool = True) -> Path:
    """Write the JSON, the page and, with `plots`, its pictures; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = record.file_stem
    encoded = msgspec.json.format(msgspec.json.encode(record), indent=1)
    (folder / f"{stem}.json").write_bytes(encoded + b"\n")
    return write_page(record, folder, plots=plots)


def write_page(record: Record, folder: Path, *, plots: bool = True) -> Path:
    """Write page and plots into a folder that is there. Its log, if any, is `THEME_log.md` in the same folder."""
    pictures: list[Path] = []
    if plots:
        from benchmarks.plots import write_plots

        pictures = write_plots(record, folder, record.file_stem)
    log = folder / f"{record.benchmark}_log.md"
    target = folder / f"{record.file_stem}.md"
    target.write_text(page(record, [picture.name for picture in pictures], log.read_text() if log.is_file() else ""))
    return target


def page(record: Record, pictures: Sequence[str] = (), log: str = "") -> str:
    """The whole page as Markdown."""
    parts = [f"# {record.benchmark.capitalize()}: Butterfly beside its bounds{_peer(record)}, {record.created}"]
    parts += [machine_text(record.machine), "## Method", METHOD.format(rounds=record.rounds)]
    if record.quick:
        parts.append("This was a quick run: few scenarios, few requests.")
    if record.serve_options:
        parts.append(f"Butterfly was started with `{' '.join(record.serve_options)}`.")
    if rows := tables.target_rows(record):
        parts += ["## Targets", tables.markdown(tables.TARGET_HEADER, rows)]
    parts += [f"![{_title(name, record)}]({name})" for name in pictures]
    parts += ["## Figures", f"Tokens per second{'; *ratio* is ours / llama.cpp' if _peer(record) else ''}."]
    for done in record.scenarios:
        parts += scenario_parts(done)
    parts += ["## Load time and memory", tables.markdown(tables.COST_HEADER, tables.cost_rows(record))]
    parts += [KERNELS_TITLE, kernel_table(record)]
    if log:
        parts.append(log.strip())
    return "\n\n".join(parts) + "\n"


KERNELS_TITLE = "## Kernels of stock PyTorch, one 2048 x 5632 product with weights from memory"


def _peer(record: Record) -> str:
    return " and llama.cpp" if any(done.arm(PEER) for done in record.scenarios) else ""


def _title(picture: str, record: Record) -> str:
    return picture.removesuffix(".png").removeprefix(f"{record.file_stem}_").replace("-", " ")


def machine_text(machine: Machine) -> str:
    rates = "; ".join(
        f"{rate.threads} thread{'s' if rate.threads > 1 else ''}: {rate.read_bytes_per_s / 1e9:.1f} GB/s read, "
        f"{rate.product_flops_per_s / 1e9:.0f} Gflop/s in products"
        for rate in machine.rates
    )
    return (
        f"{machine.cores} cores of {machine.cpu}, {machine.memory_bytes / 1e9:.0f} GB, Linux {machine.kernel}, "
        f"Python {machine.python}, PyTorch {machine.torch}. Measured: {rates}."
    )


def scenario_title(scenario: Scenario) -> str:
    """In words: nodes, link, model, threads."""
    model = MODEL_NAMES[scenario.model]
    if scenario.link is None:
        return f"{model}, one worker, {scenario.threads} thread{'s' if scenario.threads > 1 else ''}"
    share = "a core each" if scenario.cpu_share is None else f"{scenario.cpu_share:g} of a core each"
    link = f"{scenario.link.rate_bits_per_s / 1e6:,.0f} Mb/s, RTT {scenario.link.rtt_s * 1e3:g} ms"
    return f"{model}, {scenario.nodes} nodes with {share}, {link}"


def scenario_parts(done: ScenarioRecord) -> list[str]:
    parts = [f"### {done.scenario.name}", scenario_title(done.scenario) + "."]
    if done.state != "done":
        parts.append(f"**{done.state.capitalize()}**: {' '.join(done.reason.split())}")
    if done.arms:
        parts.append(tables.markdown(tables.FIGURE_HEADER, tables.figure_rows(done)))
        parts.append(tables.markdown(tables.TIME_HEADER, tables.time_rows(done)))
    if rows := tables.scaling_rows(done):
        parts += ["The second node:", tables.markdown(tables.SCALING_HEADER, rows)]
    if done.arms:
        parts.append(tables.markdown(tables.STAGE_HEADER, tables.stage_rows(done)))
    if done.network:
        parts += ["Self-check of the network:", tables.markdown(tables.NETWORK_HEADER, tables.network_rows(done))]
    if done.notes:
        parts.append("\n".join(f"- {note}" for note in done.notes))
    return parts


def kernel_table(record: Record) -> str:
    header = ["rows"]
    columns: list[dict[int, float]] = []
    for rates in record.machine.rates:
        for kernel in dict.fromkeys(point.kernel for point in rates.kernels):
            header.append(f"{kernel}, {rates.threads} thr, ms")
            columns.append({point.rows: point.seconds * 1e3 for point in rates.kernels if point.kernel == kernel})
    counts = sorted({rows for column in columns for rows in column})
    cells = [
        [str(rows), *(tables.number(column[rows]) if rows in column else tables.ABSENT for column in columns)]
        for rows in counts
    ]
    return tables.markdown(header, cells)


def summary(record: Record) -> str:
    """A few lines for the terminal: figure, bound, ratio of every load."""
    lines = []
    for done in record.scenarios:
        lines.append(f"{done.scenario.name}: {done.state}")
        for row in tables.figure_rows(done) if done.arms else ():
            name, ours, _, bound, share, theirs, _, compared, *_ = row
            lines.append(
                f"  {name:>12} {ours:>9} tok/s, bound {bound:>9} ({share:>5}), llama.cpp {theirs:>9}, ratio {compared}"
            )
    return "\n".join([*lines, *(" | ".join(row) for row in tables.target_rows(record))])


# ---------------------------------------------------------------------------------------- README


def readme_section(record: Record) -> str:
    """What stands between the markers: one row per scenario and load that says most."""
    header = ("what", "tok/s", "bound", "of bound", "llama.cpp", "ratio")
    rows = []
    for done in record.scenarios:
        for load in done.scenario.loads:
            if load.name not in README_LOADS or figure(done, OURS, load) is None:
                continue
            name, ours, _, bound, share, theirs, _, compared, *_ = tables.figure_row(done, load)
            rows.append([f"{scenario_title(done.scenario)}: {name}", ours, bound, share, theirs, compared])
    page_name = f"benchmarks/results/{record.file_stem}.md"
    text = f"{machine_text(record.machine)} Method, spreads and what was tried: [{record.file_stem}]({page_name})."
    return f"{text}\n\n{tables.markdown(header, rows)}"


def replaced(text: str, section: str) -> str:
    """`text` with `section` between the markers. Raises ValueError when they are not there, once and in order."""
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end) or BEGIN in rest or END in after:
        raise ValueError(f"there must be one {BEGIN}, and one {END} after it")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("record", type=Path, help="JSON of a run")
    parser.add_argument("--readme", action="store_true", help="update the table in README.md")
    options = parser.parse_args()
    try:
        record = msgspec.json.decode(options.record.read_bytes(), type=Record)
        print(write_page(record, options.record.parent))
        if options.readme:
            README.write_text(replaced(README.read_text(), readme_section(record)))
            print(README)
    except (OSError, ValueError) as error:  # msgspec's errors are among them
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
