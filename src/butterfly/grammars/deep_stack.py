"""A call with room for deep recursion.

The library compiles by recursion that follows a grammar's references, and running out of stack ends the process: a
few thousand definitions, each of which names the next, are enough for an ordinary stack of 8 MiB. This one is several
times larger than what `translation.MAX_TEXT_BYTES` of references were seen to need (less than 64 MiB); what is not
used is never touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from butterfly.errors import RequestFailedError

STACK_BYTES = 256 * 1024 * 1024

_Result = TypeVar("_Result")
_starting = threading.Lock()  # the size of the next thread's stack is a setting of the whole process


def call_on_deep_stack(function: Callable[[], _Result]) -> _Result:
    """Return `function()`, called on a thread of its own.

    Raises what it raises, and RequestFailedError where there is no room for such a thread.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar") as thread:
        with _starting:
            usual_bytes = threading.stack_size(STACK_BYTES)
            try:
                outcome = thread.submit(function)
            except RuntimeError as error:
                raise RequestFailedError(f"there is no room to compile a grammar: {error}") from error
            finally:
                threading.stack_size(usual_bytes)
        return outcome.result()
