"""What living processes hold, every few seconds, on a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.soak.record import ProcessRecord, Sample

PERIOD_S = 3.0
_SOCKET = "socket"


class Sampler:
    """Samples the server, its children and the processes that `others` names, while the block lasts.

    `model_bytes` has the weights and KV cache of workers, by process id; it may be replaced at any time.
    """

    def __init__(
        self, server_pid: int, others: Callable[[], Iterable[int]], model_bytes: Callable[[], Mapping[int, int]]
    ) -> None:
        self._server_pid, self._others, self._model_bytes = server_pid, others, model_bytes
        self._started_s = time.monotonic()
        self._samples: dict[int, list[Sample]] = {}
        self._is_over = threading.Event()
        self._executor = ThreadPoolExecutor(1, "sampler")
        self._running: Future[None] | None = None

    def records(self, names: dict[int, str]) -> list[ProcessRecord]:
        """Return every process that was seen, the server first, under its name or `pid N`. After the block."""
        return [
            ProcessRecord(name=names.get(pid, f"pid {pid}"), pid=pid, samples=tuple(samples))
            for pid, samples in sorted(self._samples.items(), key=lambda item: item[0] != self._server_pid)
        ]

    def __enter__(self) -> Self:
        self._running = self._executor.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._executor.shutdown()
        if error is None and self._running is not None:
            self._running.result()  # raises what ended it early

    def _run(self) -> None:
        while True:
            at_s = time.monotonic() - self._started_s
            pids = self._pids()
            for pid in pids:
                with suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):  # it ends just now
                    taken = sample(pid, at_s, len(pids), self._model_bytes().get(pid, 0))
                    self._samples.setdefault(pid, []).append(taken)
            if self._is_over.wait(PERIOD_S):
                return

    def _pids(self) -> list[int]:
        try:
            children = psutil.Process(self._server_pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return list(self._others())
        running = [child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return [self._server_pid, *running, *self._others()]


def sample(pid: int, at_s: float, num_processes: int = 1, model_bytes: int = 0) -> Sample:
    """Raises psutil.NoSuchProcess, or OSError, when it ends meanwhile."""
    process = psutil.Process(pid)
    with process.oneshot():
        memory = process.memory_full_info()
        return Sample(
            at_s=at_s,
            rss_bytes=memory.rss,
            pss_bytes=memory.pss,
            uss_bytes=memory.uss,
            num_fds=process.num_fds(),
            num_sockets=handles_by_kind(pid).get(_SOCKET, 0),
            num_threads=process.num_threads(),
            num_processes=num_processes,
            model_bytes=model_bytes,
        )


def handles_by_kind(pid: int) -> dict[str, int]:
    """Return how many sockets, pipes, eventfds and so on it has open; files by their paths. Raises OSError."""
    kinds: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            target = os.readlink(link)
            kind, _, rest = target.partition(":[")
            kinds[target if target.startswith(("/", "anon_inode")) or not rest else kind] += 1
    return dict(kinds)
