"""The small interface between processes: an inbox that receives, outboxes that send.

Two implementations keep it: `zeromq` (real sockets, CURVE) and `in_process` (queues, for tests and
simulation). tests/contract/transport_contract.py checks both.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from butterfly.messages import Message, PeerAddress

Buffer = bytes | bytearray | memoryview


class Received(NamedTuple):
    message: Message
    payload: memoryview | None  # the tensor frame, when the message has one
    sender: str  # the authenticated name behind the sender's key
    num_bytes: int  # of all frames
    received_s: float  # monotonic clock of this process


class Inbox(Protocol):
    """Where a process receives everything that is sent to it. Used by one thread, but for `wake`."""

    @property
    def address(self) -> PeerAddress:
        """Where others connect to."""

    def receive(self, timeout_s: float) -> Received | None:
        """Return the next message in order of arrival, or None after `timeout_s` or a wake.

        Messages of one sender keep their order; different senders take turns. What an admitted peer
        sent before it was expelled is dropped. Payloads are writable and belong to the receiver; nothing
        is promised about their alignment.
        Raises ProtocolError naming the sender for a frame that is not a message; the inbox stays usable.
        """

    def receive_nowait(self) -> Received | None:
        """Return a message that is already here, or None."""

    def wake(self) -> None:
        """Make a waiting `receive` return None soon; when none waits, the next one that would wait.

        Callable from any thread and, on real transports, from a signal handler.
        """

    def close(self) -> None:
        """Release the socket; later calls are errors. Idempotent."""


class Outbox(Protocol):
    """A one-way connection to one peer. Messages arrive once each, in order. Used by one thread."""

    @property
    def peer(self) -> PeerAddress: ...

    def send(self, message: Message, payload: Buffer | None = None, *, timeout_s: float) -> int:
        """Queue the message for the peer and return the bytes of all frames.

        The payload must be C-contiguous and must not be changed afterwards: it may be sent without a copy.
        Raises PeerTimeoutError naming the peer when its queue stays full (or it cannot be reached)
        for `timeout_s` (0: does not wait at all), and ProtocolError when the message does not announce
        exactly this payload. A queued message is lost when the connection breaks before it is sent.
        """

    def close(self) -> None:
        """Return at once; messages just queued still get a fraction of a second to leave. Idempotent."""


class Transport(Protocol):
    """One process's identity on the network, from which its inbox and outboxes are made."""

    @property
    def public_key(self) -> str:
        """What others must admit to hear from us and expect to find at our inbox."""

    def open_inbox(self, port: int = 0) -> Inbox:
        """Listen at this port, or at any. Raises ConfigError when that is not possible."""

    def connect(self, peer: PeerAddress) -> Outbox:
        """Return at once; the connection comes up in the background and comes back by itself.

        Raises CommunicationError for an address that cannot be one. Callable from any thread, and the
        thread that uses the outbox need not be the one that made it.
        """

    def admit(self, peer_name: str, public_key: str) -> None:
        """Let the holder of this key send to our inbox under this name, instead of any key before it."""

    def expel(self, peer_name: str) -> None:
        """Refuse this peer from now on: new connections, and messages not yet received."""

    def close(self) -> None:
        """Close every inbox and outbox of this transport, which no thread may be using. Idempotent."""
