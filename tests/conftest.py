"""Checks that hold after every test: no child process and no non-daemon thread is left over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

_GRACE_S = 2.0  # what was told to stop just before the test ended may still be on its way out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the exactness tests at their full size: half an hour more")


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """Fail a test that leaves a process or a thread behind.

    What fixtures of a wider scope started is theirs: it exists before this fixture looks.
    """
    processes_before = _children()
    threads_before = set(threading.enumerate())
    yield
    deadline_s = time.monotonic() + _GRACE_S
    threads = [
        thread
        for thread in threading.enumerate()
        if thread not in threads_before and not thread.daemon and not _ended(thread, deadline_s)
    ]
    processes = [process for process in _children() - processes_before if not _gone(process, deadline_s)]
    assert not threads, f"threads left over: {[thread.name for thread in threads]}"
    assert not processes, f"processes left over: {processes}"


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _ended(thread: threading.Thread, deadline_s: float) -> bool:
    thread.join(max(0.0, deadline_s - time.monotonic()))
    return not thread.is_alive()


def _gone(process: psutil.Process, deadline_s: float) -> bool:
    """Wait for a process without reaping it: a zombie is one that its test forgot to wait for."""
    while process.is_running():
        if time.monotonic() >= deadline_s:
            return False
        threading.Event().wait(0.01)
    return True
