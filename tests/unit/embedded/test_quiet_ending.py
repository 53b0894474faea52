"""Ctrl-C while a cluster ends."""

from __future__ import annotations

import signal
import threading

import pytest

from butterfly.embedded.cluster import _QuietEnding


def test_an_ending_is_not_interrupted_and_leaves_the_handler_as_it_was() -> None:
    def handler(signum: int, frame: object) -> None:
        raise AssertionError("it was heard")

    before = signal.signal(signal.SIGINT, handler)
    try:
        ending = _QuietEnding()
        ending.begins()
        signal.raise_signal(signal.SIGINT)
        ending.over()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ending_that_never_began_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    _QuietEnding().over()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ending_on_another_thread_leaves_signals_alone() -> None:
    """Only the main thread may say what a signal does."""

    def end() -> None:
        ending = _QuietEnding()
        ending.begins()
        assert signal.getsignal(signal.SIGINT) is before
        ending.over()

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
