"""From a record to the cells of its tables. Rates are tokens per second, times milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from benchmarks.record import (
    ONE_NODE,
    OURS,
    PEER,
    ArmRecord,
    Figure,
    Record,
    Run,
    ScenarioRecord,
    Verdict,
    figure,
    ratio,
    share_of_bound,
    software_per_hop,
    verdicts,
)
from benchmarks.scenarios import TARGETS, LoadShape

ABSENT = "–"
Rows = list[list[str]]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures. Columns without any are left out."""
    rows = list(rows)
    kept = [column for column in range(len(header)) if any(row[column] != ABSENT for row in rows)]
    lines = [[line[column] for column in kept] for line in (header, ["---", *["---:"] * (len(header) - 1)], *rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits that mean something: 0.0123, 1.23, 12.3, 123."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:,.{digits}f}"


def spread(found: Figure | None) -> str:
    return ABSENT if found is None else f"{number(found.low)}–{number(found.high)}"


def middle(found: Figure | None) -> str:
    return ABSENT if found is None else number(found.median)


def percent(found: Figure | None) -> str:
    return ABSENT if found is None else f"{100 * found.median:.0f} %"


TARGET_HEADER = ("target", "measured", "spread", "wanted", "met?")


def target_rows(record: Record) -> Rows:
    """Every target whose scenario was run."""
    return [
        [verdict.target.what, *_verdict_cells(verdict), "yes" if verdict.is_met else "**no**"]
        for verdict in verdicts(record)
    ]


def _verdict_cells(verdict: Verdict) -> list[str]:
    target, found = verdict.target, verdict.measured
    if target.against == "absolute":
        in_ms = Figure(median=found.median * 1e3, low=found.low * 1e3, high=found.high * 1e3)
        return [f"{middle(in_ms)} ms", spread(in_ms), f"< {number(target.value * 1e3)} ms"]
    if target.against == "bound":
        in_percent = Figure(median=found.median * 100, low=found.low * 100, high=found.high * 100)
        return [f"{in_percent.median:.0f} %", spread(in_percent), f">= {100 * target.value:.0f} %"]
    unit = "x" if target.against == "peer" else "x of one node"
    return [f"{middle(found)}{unit}", spread(found), f">= {number(target.value)}"]


FIGURE_HEADER = (
    "load",
    "tok/s",
    "spread",
    "bound",
    "of bound",
    "llama.cpp",
    "spread",
    "ratio",
    "wanted",
    "met?",
)


def figure_rows(record: ScenarioRecord) -> Rows:
    """One row per load."""
    return [figure_row(record, load) for load in record.scenario.loads]


def figure_row(record: ScenarioRecord, load: LoadShape) -> list[str]:
    ours, theirs = figure(record, OURS, load), figure(record, PEER, load)
    compared = ratio(record, load, OURS, PEER)
    target = next(
        (t for t in TARGETS if (t.scenario, t.load, t.against) == (record.scenario.name, load.name, "peer")), None
    )
    met = ABSENT if target is None or compared is None else "yes" if target.is_met(compared.median) else "**no**"
    bound = record.bounds.get(load.name)
    return [
        load.name,
        middle(ours),
        spread(ours),
        number(bound.rate) if bound else ABSENT,
        percent(share_of_bound(record, load)),
        middle(theirs),
        spread(theirs),
        middle(compared),
        number(target.value) if target else ABSENT,
        met,
    ]


TIME_HEADER = ("load", "TTFT ms", "bound", "llama.cpp", "TPOT ms", "bound", "llama.cpp")


def time_rows(record: ScenarioRecord) -> Rows:
    """Medians over rounds of medians over requests."""
    rows = []
    for load in record.scenario.loads:
        bound = record.bounds.get(load.name)
        row = [load.name]
        for get, limit_s in (
            (_ttft_s, bound.ttft_s if bound and load.concurrency == 1 else None),
            (_tpot_s, bound.tpot_s if bound else None),
        ):
            limit = ABSENT if limit_s is None else number(limit_s * 1e3)
            row += [_milliseconds(record, OURS, load, get), limit, _milliseconds(record, PEER, load, get)]
        rows.append(row)
    return rows


def _ttft_s(run: Run) -> float | None:
    return run.ttft_s


def _tpot_s(run: Run) -> float | None:
    return run.tpot_s


def _milliseconds(record: ScenarioRecord, arm: str, load: LoadShape, get: Callable[[Run], float | None]) -> str:
    found = record.arm(arm)
    values = [value for run in found.runs.get(load.name, ()) if (value := get(run)) is not None] if found else []
    return number(1e3 * median(values)) if values else ABSENT


SCALING_HEADER = ("load", "one node tok/s", "spread", "two nodes tok/s", "spread", "ratio", "spread")


def scaling_rows(record: ScenarioRecord) -> Rows:
    """What the second node brings; empty where one node was not measured beside."""
    if record.arm(ONE_NODE) is None:
        return []
    rows = []
    for load in record.scenario.loads:
        one, two = figure(record, ONE_NODE, load), figure(record, OURS, load)
        compared = ratio(record, load, OURS, ONE_NODE)
        rows.append([load.name, middle(one), spread(one), middle(two), spread(two), middle(compared), spread(compared)])
    return rows


STAGE_HEADER = ("load", "stages busy, about %", "software per hop, ms", "bytes per token by link", "llama.cpp's")


def stage_rows(record: ScenarioRecord) -> Rows:
    """Means over the rounds. Bytes count both ways, headers included."""
    rows = []
    for load in record.scenario.loads:
        busy = _mean_by_key(record, OURS, load, lambda run: run.stage_busy)
        hop = software_per_hop(record, load)
        rows.append(
            [
                load.name,
                " / ".join(f"{100 * share:.0f}" for _, share in sorted(busy.items())) or ABSENT,
                number(hop.median * 1e3) if hop else ABSENT,
                _links(_mean_by_key(record, OURS, load, lambda run: run.link_bytes_per_token)),
                _links(_mean_by_key(record, PEER, load, lambda run: run.link_bytes_per_token)),
            ]
        )
    return rows


def _mean_by_key(
    record: ScenarioRecord, arm: str, load: LoadShape, get: Callable[[Run], dict[str, float]]
) -> dict[str, float]:
    found = record.arm(arm)
    runs = [get(run) for run in found.runs.get(load.name, ())] if found else []
    keys = {key for run in runs for key in run}
    return {key: sum(run.get(key, 0.0) for run in runs) / len(runs) for key in keys}


def _links(counts: dict[str, float]) -> str:
    return ", ".join(f"{path.replace(' -> ', '→')} {number(count)}" for path, count in sorted(counts.items())) or ABSENT


COST_HEADER = ("scenario", "load s", "llama.cpp", "bound", "memory, GB", "llama.cpp, GB")


def cost_rows(record: Record) -> Rows:
    """Load time and resident memory of each scenario that got so far."""
    return [
        [
            done.scenario.name,
            _load_time(done.arm(OURS)),
            _load_time(done.arm(PEER)),
            number(done.load_bound_s),
            _memory(done.arm(OURS)),
            _memory(done.arm(PEER)),
        ]
        for done in record.scenarios
        if done.arms
    ]


def _load_time(arm: ArmRecord | None) -> str:
    return number(arm.load_time_s) if arm else ABSENT


def _memory(arm: ArmRecord | None) -> str:
    if arm is None or not arm.memory_bytes:
        return ABSENT
    each = " + ".join(number(size / 1e9) for size in arm.memory_bytes.values())
    return each if len(arm.memory_bytes) == 1 else f"{number(sum(arm.memory_bytes.values()) / 1e9)} = {each}"


NETWORK_HEADER = ("path", "Mb/s asked", "measured", "RTT ms asked", "median", "p99")


def network_rows(record: ScenarioRecord) -> Rows:
    """The self-check of a scenario's links."""
    return [
        [
            f"{path.sender}→{path.receiver}",
            number(path.asked_rate_bits_per_s / 1e6),
            number(path.rate_bits_per_s / 1e6),
            number(path.asked_rtt_s * 1e3),
            number(path.median_rtt_s * 1e3),
            number(path.p99_rtt_s * 1e3),
        ]
        for path in record.network
    ]
