"""The last moves of a cluster from one plan to the next, for people: when, why, and what each part took."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from butterfly.specs import Recovery

_SHOWN = 5


def moves_table(moves: Sequence[Recovery], now_s: float) -> Table:
    """The newest first. `now_s` is on the clock of the moves."""
    table = Table("move", "noticed after", "planned in", "loaded in", "because", box=None)
    for move in tuple(reversed(moves))[:_SHOWN]:
        table.add_row(
            ago(now_s - (move.noticed_s if move.loaded_s is None else move.loaded_s)),
            _between(move.lost_s, move.noticed_s),
            _between(move.noticed_s, move.planned_s),
            _between(move.planned_s, move.loaded_s),
            move.cause,
        )
    return table


def ago(seconds: float) -> str:
    """75 -> '1 min ago'; what is shorter than a second counts as one."""
    for unit_s, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit_s:
            return f"{seconds // unit_s:.0f} {unit} ago"
    return f"{max(1.0, seconds):.0f} s ago"


def _between(start_s: float | None, end_s: float | None) -> str:
    """The empty string for what is still under way."""
    return "" if start_s is None or end_s is None else f"{end_s - start_s:.2f} s"
