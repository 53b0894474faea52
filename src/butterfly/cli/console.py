"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from butterfly.errors import ConfigError
from butterfly.specs import ClusterStatus, Plan

_WIDE = 200  # columns of a file or pipe: nobody looks at its right edge


def _make_console(file: TextIO, *, stderr: bool = False) -> Console:
    """No markup of our own making: highlighting and emoji codes would change what a model wrote."""
    return Console(stderr=stderr, highlight=False, emoji=False, width=None if file.isatty() else _WIDE)


console = _make_console(sys.stdout)
errors = _make_console(sys.stderr, stderr=True)


def print_error(message: str) -> None:
    """One line, whatever the message: `error: ...`."""
    errors.print("error: " + " ".join(message.split()), markup=False, soft_wrap=True)


_LOG_LEVELS = ("debug", "info", "warning", "error")


def set_up_logging(level: str) -> None:
    """Raises ConfigError for a level that is none."""
    if level.lower() not in _LOG_LEVELS:
        raise ConfigError(f"unknown log level {level!r}: use {', '.join(_LOG_LEVELS)}")
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")


def format_bytes(num_bytes: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def format_layers(start: int, end: int, *, embedding: bool, head: bool) -> str:
    """'embedding + 0-9' with the inclusive numbers that people read."""
    parts = ["embedding"] if embedding else []
    if end > start:
        parts.append(f"{start}-{end - 1}" if end - start > 1 else str(start))
    return " + ".join([*parts, "head"] if head else parts)


def plan_table(plan: Plan) -> Table:
    """The stages of a plan with what each holds and is predicted to cost."""
    table = Table("worker", "layers", "weights", "KV cache", "per token", box=None, pad_edge=False)
    for stage in plan.stages:
        table.add_row(
            stage.worker,
            format_layers(stage.start, stage.end, embedding=stage.embedding, head=stage.head),
            format_bytes(stage.weight_bytes),
            format_bytes(stage.kv_bytes),
            f"{stage.predicted_compute_s * 1e3:.1f} ms",
        )
    return table


class LoadingProgress:
    """One bar per worker while a cluster comes up. Silent when standard error is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, status: ClusterStatus) -> None:
        for worker in status.workers:
            if worker.name not in self._tasks:
                self._tasks[worker.name] = self._progress.add_task(worker.name, total=1.0, what="")
            layers = format_layers(worker.start, worker.end, embedding=worker.embedding, head=worker.head)
            what = f"{worker.phase} {layers}" if layers else worker.phase
            self._progress.update(self._tasks[worker.name], completed=worker.load_fraction, what=what)

    def download(self, name: str, done: int, total: int) -> None:
        """Progress of getting the model file itself, in bytes (total 0: not known)."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total or None, what="")
        self._progress.update(self._tasks[name], completed=done, total=total or None, what=format_bytes(done))


@contextmanager
def loading_progress() -> Iterator[LoadingProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        yield LoadingProgress(progress)
