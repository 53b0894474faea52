"""Progress bars for Python callers: on a terminal only, and gone when the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from butterfly.embedded import StartWatcher
from butterfly.specs import ClusterStatus


class _LoadingBar:
    """One bar for each file that is fetched, and one for all workers together."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def download(self, name: str, done: int, total: int) -> None:
        self._show(name, done, total or None)

    def show(self, status: ClusterStatus) -> None:
        loaded = sum(worker.load_fraction for worker in status.workers)
        self._show(f"loading on {len(status.workers)} workers", loaded, len(status.workers))

    def _show(self, name: str, done: float, total: float | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)


@contextmanager
def loading_bar() -> Iterator[StartWatcher]:
    """Watches a start on standard error."""
    with _bars(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()) as progress:
        yield _LoadingBar(progress)


@contextmanager
def answers_bar(num_answers: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number of tokens of every answer that ended, from one thread at a time."""
    if not shown:
        yield lambda num_tokens: None
        return
    rate = TextColumn("{task.completed:.0f}/{task.total:.0f} answers, {task.fields[tokens]} tokens")
    with _bars(BarColumn(), rate, TimeElapsedColumn()) as progress:
        task = progress.add_task("answers", total=num_answers, tokens=0)

        def count(num_tokens: int) -> None:
            progress.update(task, advance=1, tokens=progress.tasks[0].fields["tokens"] + num_tokens)

        yield count


def _bars(*columns: TextColumn | BarColumn | TimeElapsedColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
