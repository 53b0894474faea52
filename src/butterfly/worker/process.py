"""The entry of a worker process: signals, lifeline, exit code."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from butterfly.communication import Transport
from butterfly.errors import ButterflyError, PeerLostError, PeerTimeoutError
from butterfly.messages import Invitation, PeerAddress
from butterfly.worker.deadlines import Deadlines
from butterfly.worker.loop import Held, WorkerLoop
from butterfly.worker.profiling import Profiler
from butterfly.worker.resources import NodeResources
from butterfly.worker.stage import StageFactory

logger = logging.getLogger(__name__)

Rejoin = Callable[[], Invitation]
"""Waits until a coordinator lets us in again. Raises ButterflyError when none does."""


def run_worker(
    invitation: Invitation,
    transport: Transport,
    stage_factory: StageFactory,
    resources: NodeResources,
    *,
    profiler: Profiler | None = None,
    launched: bool = False,
    rejoin: Rejoin | None = None,
    blobs: PeerAddress | None = None,
    deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
) -> int:
    """Work for the coordinator of the invitation until told to stop; return the exit code.

    0 after Shutdown, SIGTERM or (started by hand) SIGINT; 1, with one line on standard error, when the
    coordinator cannot be joined or falls silent, or on a bug. `launched` says that a launcher handles
    Ctrl-C: SIGINT is ignored. (It also holds our standard input: see `hold_lifeline`.)
    Without a `profiler` it answers Failed when it is told to measure what steps take. With `rejoin`, a worker whose
    coordinator is gone keeps its weights and joins where that says. `blobs`: where it gives tensors to its peers.
    Everything opened here is closed; the transport itself remains its maker's to close.
    """
    held = Held()
    try:
        while True:
            worker = WorkerLoop(invitation, transport, stage_factory, resources, deadlines, profiler, held, blobs)
            with _signals_to(worker.request_stop, ignore_interrupt=launched), closing(worker):
                try:
                    _work(worker)
                except (PeerLostError, PeerTimeoutError) as error:
                    if rejoin is None or worker.is_stopping:
                        raise
                    logger.warning("%s; joining again", error)
                    held = worker.give_up()
                else:
                    return 0
            invitation = rejoin()
    except ButterflyError as error:
        return _complain(invitation.name, str(error))
    except Exception as error:
        logger.debug("the traceback:", exc_info=True)
        return _complain(invitation.name, _describe_bug(error))


def _work(worker: WorkerLoop) -> None:
    try:
        worker.join()
        worker.serve()
    except ButterflyError:
        raise
    except Exception as error:
        with suppress(ButterflyError):  # the coordinator need not wait for our silence to know
            worker.report(_describe_bug(error))
        raise
    if worker.is_stopping:
        worker.say_goodbye("it was told to end")


def _describe_bug(error: Exception) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "" if frame is None else f" at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
    return " ".join(f"internal error{where}: {type(error).__name__}: {error}".split())


def _complain(name: str, line: str) -> int:
    sys.stderr.write(f"worker {name}: {line}\n")
    return 1


@contextmanager
def _signals_to(stop: Callable[[], None], ignore_interrupt: bool) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `stop` for a while; elsewhere than in the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt = signal.SIG_IGN if ignore_interrupt else lambda *_: stop()
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: stop()),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
