"""A cluster and an event loop on a thread of their own, for callers that have no loop, or one that must not wait.

The thread ends, and every worker with it, when it is told to stop, when the start fails, and when the program's main
thread has ended: a program that forgets to close what it opened must not hang at its end, where Python joins every
thread before it runs any exit handler.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from butterfly.config import ClusterConfig
from butterfly.embedded import EmbeddedCluster, StartWatcher, Watching, embedded_cluster
from butterfly.errors import LaunchError, NotReadyError
from butterfly.specs import ClusterStatus

_LOOK_S = 0.2  # between two looks at whether the program still lives

T = TypeVar("T")


class EngineThread:
    """Starts a cluster at once, in the background. Any thread may use it.

    `ready` is settled when the model is loaded on every worker, or with the error that came before; `ended` when
    every process of the cluster is gone.
    """

    def __init__(self, config: ClusterConfig, watching: Watching) -> None:
        self.ready: Future[EmbeddedCluster] = Future()
        self.ended: Future[None] = Future()
        for future in (self.ready, self.ended):
            future.set_running_or_notify_cancel()  # whoever gives up waiting must not cancel it for others
        self._config = config
        self._watching = watching
        self._stopping = threading.Event()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # while it takes work
        # Reentrant, as `stop` may be called by the garbage collector, which runs anywhere.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="butterfly-llm")
        self._thread.start()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Do `work` on the engine's loop and return its result; Ctrl-C cancels it.

        Raises what it raises, and NotReadyError when the engine is or gets stopped.
        """
        with self._lock:
            if self._loop is None:
                work.close()
                raise NotReadyError("this LLM is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise NotReadyError("this LLM was closed while it worked") from None
        finally:
            future.cancel()  # nothing is left to cancel, but after an interrupt

    def stop(self) -> None:
        """Ask the cluster and this thread to end. Returns at once. Idempotent."""
        self._stopping.set()
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake.set)

    def join(self) -> None:
        """Wait until every process and thread of the cluster has ended."""
        self._thread.join()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set() or not threading.main_thread().is_alive()

    def _run(self) -> None:
        try:
            with embedded_cluster(self._config, self._watch_start) as cluster:
                cluster.wait_until_ready()
                asyncio.run(self._serve(cluster))
        except BaseException as error:  # the thread's entry point: whoever waits for `ready` raises it
            if self.ready.done():
                raise
            self.ready.set_exception(error)
        finally:
            self.ended.set_result(None)

    async def _serve(self, cluster: EmbeddedCluster) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(1, "butterfly-llm"))  # for grammars, which take long
        self.ready.set_result(cluster)
        while not self.is_stopping:
            try:
                await asyncio.wait_for(self._wake.wait(), _LOOK_S)
            except TimeoutError:
                continue
        with self._lock:
            self._loop = None
        await asyncio.sleep(0)  # what came before that becomes a task, and is cancelled with the others

    @contextmanager
    def _watch_start(self) -> Iterator[StartWatcher]:
        with self._watching() as watcher:
            yield _Interruptible(watcher, self)


class _Interruptible:
    """Ends a start that nobody waits for any more: an interrupted caller must not sit through a download."""

    def __init__(self, watcher: StartWatcher, engine: EngineThread) -> None:
        self._watcher = watcher
        self._engine = engine

    def download(self, name: str, done: int, total: int) -> None:
        self._check()
        self._watcher.download(name, done, total)

    def show(self, status: ClusterStatus) -> None:
        self._check()
        self._watcher.show(status)

    def _check(self) -> None:
        if self._engine.is_stopping:
            raise LaunchError("the start was given up")
