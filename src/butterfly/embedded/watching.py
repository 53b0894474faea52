"""How a start is watched: by whoever has these two methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from butterfly.specs import ClusterStatus


class StartWatcher(Protocol):
    """Hears how a model is fetched and a cluster comes up, many times a second.

    What its methods raise ends the start, as any error does: that is how to give up waiting.
    """

    def download(self, name: str, done: int, total: int) -> None:
        """So many bytes of a model's file are here (total 0: not known)."""

    def show(self, status: ClusterStatus) -> None:
        """The cluster looks like this now."""


Watching = Callable[[], AbstractContextManager[StartWatcher]]
"""Opens a watcher for one phase of a start, so that progress bars are gone before anybody else prints."""


class _Nobody:
    def download(self, name: str, done: int, total: int) -> None: ...

    def show(self, status: ClusterStatus) -> None: ...


@contextmanager
def unwatched() -> Iterator[StartWatcher]:
    """For a start that nobody watches."""
    yield _Nobody()
