"""The small interface of calls with answers. Two implementations keep it, as with messages.

tests/contract/service_contract.py checks both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, Protocol

from butterfly.calls import Answer, Call
from butterfly.communication.transport import Buffer
from butterfly.messages import PeerAddress

MAX_CALL_BYTES = 16 << 10  # longer ones are refused
MAX_PART_BYTES = 4 << 20  # more than this cannot be fetched with one call

NUM_UNDER_WAY = 8  # at 1 MiB each they fill a link of 3 Gb/s with a round trip of 20 ms


class Caller(NamedTuple):
    """Who asks."""

    public_key: str  # proven
    name: str | None  # under which the key is admitted; None: a stranger
    host: str = ""  # for people: the address that it asks from


Handler = Callable[[Caller, Call], Answer | tuple[Answer, Buffer]]
"""Answers one call, with bytes for a BlobPart. Asked by the service's one thread, so it must be quick: what takes
longer is refused for now (`is_final=False`) and prepared meanwhile. A ButterflyError becomes Refused."""

WhileWaiting = Callable[[], None]
"""Called several times a second while an answer is waited for; what it raises ends the wait."""


class Service(Protocol):
    """Answers calls, on a thread of its own, until it is closed."""

    @property
    def address(self) -> PeerAddress:
        """Where callers connect to."""

    def close(self) -> None:
        """Stop answering. Idempotent."""


class ServiceClient(Protocol):
    """Asks one peer. Used by one thread."""

    @property
    def peer(self) -> PeerAddress: ...

    def call(
        self, call: Call, timeout_s: float, *, while_waiting: WhileWaiting | None = None
    ) -> tuple[Answer, memoryview | None]:
        """Return the answer, and the bytes of a BlobPart.

        Raises PeerTimeoutError when there is none within `timeout_s` and ProtocolError for one that does not fit the
        call, both naming the peer. Refused is an answer. The connection comes back by itself; a call that was under
        way when it broke is not repeated.
        """

    def call_many(
        self,
        calls: Iterable[Call],
        timeout_s: float,
        *,
        num_under_way: int = NUM_UNDER_WAY,
        while_waiting: WhileWaiting | None = None,
    ) -> Generator[tuple[Answer, memoryview | None], None, None]:
        """Yield the answers in the order of the calls, with several calls under way at any time.

        The calls are drawn as they are made, so they may depend on answers that were yielded. `timeout_s` is for
        every answer, from when it is waited for. Raises as `call`; to be closed when it is not exhausted.
        """

    def close(self) -> None:
        """Idempotent."""


class Services(Protocol):
    """One process's identity, from which its service and its connections to others' are made."""

    def open_service(self, handler: Handler, port: int = 0) -> Service:
        """Answer calls at this port, or at any. Raises ConfigError when it cannot be listened on."""

    def connect_service(self, peer: PeerAddress) -> ServiceClient:
        """Return at once. Raises CommunicationError for an address that cannot be one."""
