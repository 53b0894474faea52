"""From a record to a page and the JSON itself."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.faults.record import FAULTS, FaultRecord, FaultsRecord, middle, worst
from benchmarks.report import machine_text
from benchmarks.tables import markdown

THEME = "faults"
_METHOD = """\
Three workers serve {model}, in half of the rounds with a fourth on standby. One to eight greedy streams run; at a
random moment one worker of the plan is killed, stopped or cut off. Every stream must end with exactly the text that it
has when nothing happens. The pause of a stream is the time from the fault to its next token after the cluster has dealt
with it; medians and the worst are over streams. It has four parts: until the coordinator gives the worker up (found),
until there is a plan, until every stage of it has loaded what it lacks, and until prefill brings the first token.
Later: the longest gap after that, as when the worker is back and the cluster moves again."""


def write_results(record: FaultsRecord, folder: Path) -> Path:
    """Write JSON and page into the folder; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{THEME}_{record.machine.slug}_{record.created[:7].replace('-', '')}"
    (folder / f"{stem}.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    log = folder / f"{THEME}_log.md"
    target = folder / f"{stem}.md"
    target.write_text(page(record, log.read_text() if log.is_file() else ""))
    return target


def page(record: FaultsRecord, log: str) -> str:
    parts = [
        f"# Faults while serving, {record.created}",
        machine_text(record.machine),
        "## Method",
        _METHOD.format(model=record.model),
        "## What the streams saw",
        summary(record),
        log.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(record: FaultsRecord) -> str:
    header = (
        "faults",
        "number",
        "streams",
        "changed",
        "failed",
        "pause",
        "worst",
        "found",
        "plan",
        "load",
        "prefill",
        "later",
    )
    groups: list[tuple[str, list[FaultRecord]]] = [("**all**", list(record.faults))]
    groups += [(f"{kind}: {what}", [f for f in record.faults if f.kind == kind]) for kind, what in FAULTS.items()]
    groups += [(f"during {phase}", [f for f in record.faults if f.phase == phase]) for phase in ("prefill", "decode")]
    groups += [
        ("with a spare", [f for f in record.faults if f.has_spare]),
        ("without", [f for f in record.faults if not f.has_spare]),
    ]
    return markdown(header, [_row(name, faults) for name, faults in groups if faults])


def _row(name: str, faults: list[FaultRecord]) -> list[str]:
    pauses = [pause for fault in faults for pause in fault.pauses_s]
    return [
        name,
        str(len(faults)),
        str(sum(fault.num_streams for fault in faults)),
        str(sum(fault.num_flips for fault in faults)),
        str(sum(fault.num_errors for fault in faults)),
        _seconds(middle(pauses)),
        _seconds(worst(pauses)),
        _seconds(middle([fault.detection_s for fault in faults])),
        _seconds(middle([fault.planning_s for fault in faults])),
        _seconds(middle([fault.loading_s for fault in faults])),
        _seconds(middle([fault.prefill_s for fault in faults])),
        _seconds(middle([fault.later_pause_s for fault in faults])),
    ]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"
