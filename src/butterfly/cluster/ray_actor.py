"""What Ray runs on a node for us: the keeper of one worker process. It needs no Ray itself."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

import msgspec

from butterfly.cluster.launcher import LocalLauncher
from butterfly.messages import Invitation

_LOOK_INTERVAL_S = 0.1


class WorkerKeeper:
    """Starts the worker with this node's own Python, holds the pipe that ties the worker to us, and waits for its end.

    An asyncio actor: its calls take turns in one thread. Only plain values go in and out.
    """

    def __init__(self) -> None:
        self._launcher: LocalLauncher | None = None
        self._name = ""
        self._end: tuple[int | None, str] | None = None

    async def begin(self, invitation: str, arguments: Sequence[str]) -> tuple[int, int]:
        """Start it; return its process id and niceness. Raises LaunchError."""
        invited = msgspec.json.decode(invitation, type=Invitation)
        self._name = invited.name
        self._launcher = LocalLauncher([sys.executable, *arguments])
        self._launcher.start(invited)
        return self._launcher.pids()[self._name], os.nice(0)

    async def wait_end(self) -> tuple[int | None, str]:
        """Return its exit code (None: ended by `stop`) and last lines once it has ended. Can be asked again."""
        assert self._launcher is not None, "nothing was begun"
        while self._end is None:
            for over in self._launcher.poll():
                self._end = over.returncode, over.output_tail
            await asyncio.sleep(_LOOK_INTERVAL_S)
        return self._end

    async def kill_worker(self) -> None:
        """End it by force: it may only hang. `wait_end` tells of it."""
        if self._launcher is not None:
            self._launcher.kill(self._name)

    async def stop(self, timeout_s: float) -> None:
        """End it, by force if need be, within about this time."""
        self._end = self._end or (None, "")
        if self._launcher is not None:
            self._launcher.stop(timeout_s)
