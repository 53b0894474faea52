"""From the record of a soak to a page and the JSON itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from benchmarks.report import machine_text
from benchmarks.soak.record import EVENTS, FIGURES, WARM_UP_SHARE, ProcessRecord, SoakRecord
from benchmarks.tables import markdown

THEME = "soak"
_METHOD = """\
`butterfly serve {model} --listen` with two local workers serves one to four greedy streams at a time without end, over
every worker that is there (`--all-workers`: whoever comes or goes moves layers). Every 15 to 25 s one thing happens to
it. Up to two workers join by the join line; one local worker is never hurt, to see what a long life does to it. Each
text must be the one that it is when nothing happens. The processes are sampled every few seconds. Of the samples after
the warm-up ({warm_up:.0%} of the time) stand here the medians of the first and of the last third, their difference, and
the slope by Theil-Sen. A count grows steadily when its median and its minimum rise from third to third; it is looked at
only while as many processes lived as most of the time. The server's handles are also compared before the load, when one
worker has come and gone, and after the last one is gone."""
_MB = 1e6


def write_results(record: SoakRecord, folder: Path) -> Path:
    """Write JSON and page into the folder; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{THEME}_{record.machine.slug}_{record.created[:7].replace('-', '')}"
    (folder / f"{stem}.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    target = folder / f"{stem}.md"
    target.write_text(page(record))
    return target


def page(record: SoakRecord) -> str:
    parts = [
        f"# {record.lasted_s / 60:.0f} minutes of workers that join, leave and die, {record.created}",
        machine_text(record.machine),
        "## Method",
        _METHOD.format(model=record.model, warm_up=WARM_UP_SHARE),
        "## What came of it",
        summary(record),
    ]
    return "\n\n".join(parts) + "\n"


def summary(record: SoakRecord) -> str:
    load, counts = record.load, Counter(event.kind for event in record.events)
    streams = (
        f"{load.num_streams} streams, {load.num_tokens} tokens: {load.num_changed} changed, {load.num_failed} failed; "
        f"the longest pause within a stream was {load.longest_pause_s:.1f} s."
    )
    events = markdown(("event", "times"), [[what, str(counts[kind])] for kind, what in EVENTS.items()])
    refused = [f"{event.kind} {event.worker}: {event.note}" for event in record.events if event.note]
    grown = sorted(record.first_handles.keys() | record.last_handles.keys())
    handles = markdown(
        ("handles of the server", "before", "after"),
        [[kind, str(record.first_handles.get(kind, 0)), str(record.last_handles.get(kind, 0))] for kind in grown],
    )
    parts = [
        streams,
        events,
        figures(record.server),
        figures(record.worker),
        handles,
        _list("Refused", refused),
        _list("In the cache for the next worker, from killed ones", list(record.kept)),
        _list("Not as it should be", record.failures) or "Nothing was left over, and nothing grows steadily.",
    ]
    return "\n\n".join(part for part in parts if part)


def figures(process: ProcessRecord) -> str:
    """What a process held, and whether that is flat."""
    rows = []
    for figure, name in FIGURES.items():
        found = process.trend(figure)
        if found is None:
            continue
        scale, unit, digits = (_MB, " MB", 1) if figure.endswith("_bytes") else (1, "", 0)
        cells = [f"{value / scale:.{digits}f}{unit}" for value in (found.medians[0], found.medians[-1])]
        change = [f"{found.growth / scale:+.1f}{unit}", f"{found.per_hour / scale:+.1f}{unit}/h"]
        rows.append([name, *cells, *change, f"{found.minima[0] / scale:.0f}, {found.minima[-1] / scale:.0f}{unit}"])
    if not rows:
        return f"{process.name} lived {process.lived_s:.0f} s: too short to tell."
    header = (
        f"{process.name}, {process.lived_s / 60:.1f} min",
        "first third",
        "last third",
        "growth",
        "slope",
        "minima",
    )
    return markdown(header, rows)


def _list(title: str, lines: list[str]) -> str:
    return "\n".join([f"{title}:", "", *(f"- {' '.join(line.split())}" for line in lines)]) if lines else ""
