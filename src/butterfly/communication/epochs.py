"""The border between plans: a message of an older plan is dropped, whoever still sends it.

Which messages belong to a plan is decided here, once. Step, Result, Load, LoadProgress, Loaded and
Failed do; Join, Heartbeat, Ping and Shutdown are about a process's life and always pass, and so does all that
measures a node and its links, which is done before there is a plan.

The epoch rises only by a Load (a worker adopts it before it loads) and by the coordinator itself. The
coordinator issues steps of an epoch only after every stage of it answered Loaded, so a Step or a Result
that is *newer* than ours cannot arrive from a correct peer: it is a ProtocolError, not something to wait
for. A Load of our own epoch passes: loading the same stage twice is harmless.
"""

from __future__ import annotations

from butterfly.errors import ProtocolError
from butterfly.messages import Failed, Load, Loaded, LoadProgress, Message, Result, Step

_PLAN_BOUND = (Step, Result, Load, LoadProgress, Loaded, Failed)


class EpochGate:
    """Knows the current epoch and drops plan-bound messages of older ones. Not thread-safe."""

    def __init__(self, epoch: int = 0) -> None:
        self._epoch = epoch
        self._num_dropped = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def num_dropped(self) -> int:
        """Messages refused so far because they belonged to an older plan."""
        return self._num_dropped

    def raise_to(self, epoch: int) -> None:
        """Adopt a plan. Raises ValueError when it is older than the current one."""
        if epoch < self._epoch:
            raise ValueError(f"the epoch is {self._epoch} and cannot go back to {epoch}")
        self._epoch = epoch

    def admits(self, message: Message, sender: str = "") -> bool:
        """Return whether the message may pass; False counts it as dropped.

        Raises ProtocolError naming `sender` for a plan-bound message of an epoch that we have not
        entered, except Load, which is how a worker enters one.
        """
        if not isinstance(message, _PLAN_BOUND):
            return True
        if message.epoch < self._epoch:
            self._num_dropped += 1
            return False
        if message.epoch > self._epoch and not isinstance(message, Load):
            kind = type(message).__name__
            raise ProtocolError(
                f"{sender} sent a {kind} of epoch {message.epoch}, but the epoch here is {self._epoch}", sender
            )
        return True
