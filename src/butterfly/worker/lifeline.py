"""The pipe that ties a worker to its launcher: when the other end is gone, so is the worker.

A launcher that is killed cannot say goodbye, but the kernel closes its end of our standard input.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def _exit_at_once() -> None:
    # Not sys.exit: the main thread may be in the middle of a long computation, and nothing here is worth
    # saving.
    os._exit(0)


def hold_lifeline(descriptor: int = 0, on_cut: Callable[[], None] = _exit_at_once) -> threading.Thread:
    """Start a daemon thread that calls `on_cut` when the pipe behind `descriptor` is closed."""

    def wait_for_the_end() -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:
            pass  # as good as closed
        on_cut()

    thread = threading.Thread(target=wait_for_the_end, name="lifeline", daemon=True)
    thread.start()
    return thread
