"""The in-memory twin of the network: the same promises over queues, for tests and simulation.

Messages go through the same encoding as on a wire, so nothing that cannot travel passes here, and
payloads are copied, so sender and receiver never share memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from butterfly.communication.admissions import Admissions
from butterfly.communication.frames import pack, unpack
from butterfly.communication.services.in_process import InProcessService, InProcessServiceClient
from butterfly.communication.services.interface import Handler, Service, ServiceClient
from butterfly.communication.transport import Buffer, Inbox, Outbox, Received
from butterfly.errors import CommunicationError, PeerTimeoutError
from butterfly.messages import Message, PeerAddress


class InProcessNetwork:
    """Where in-process transports find one another. Safe to use from any thread.

    `capacity` is the number of messages that an inbox holds before its senders wait.
    """

    def __init__(self, capacity: int = 32) -> None:
        self.capacity = capacity
        self.changed = threading.Condition()  # guards all queues of this network
        self._inboxes: dict[str, InProcessInbox] = {}
        self._services: dict[str, InProcessService] = {}
        self._num_names = 0

    def transport(self, name: str) -> InProcessTransport:
        """Return a new identity: two transports of one name still have different keys."""
        with self.changed:
            self._num_names += 1
            return InProcessTransport(self, name, f"key-{self._num_names}-{name}")

    def add(self, inbox: InProcessInbox) -> None:
        with self.changed:
            self._inboxes[inbox.address.endpoint] = inbox
            self.changed.notify_all()

    def remove(self, inbox: InProcessInbox) -> None:
        with self.changed:
            self._inboxes.pop(inbox.address.endpoint, None)

    def find(self, address: PeerAddress) -> InProcessInbox | None:
        """Return the inbox at this endpoint if its owner holds the expected key."""
        inbox = self._inboxes.get(address.endpoint)
        return inbox if inbox is not None and inbox.address.public_key == address.public_key else None

    def add_service(self, service: InProcessService) -> None:
        with self.changed:
            self._services[service.address.endpoint] = service

    def find_service(self, address: PeerAddress) -> InProcessService | None:
        """Return the open service at this endpoint if its owner holds the expected key."""
        service = self._services.get(address.endpoint)
        if service is None or service.closed or service.address.public_key != address.public_key:
            return None
        return service


class InProcessTransport:
    """One identity on an InProcessNetwork."""

    def __init__(self, network: InProcessNetwork, name: str, public_key: str) -> None:
        self._network = network
        self._name = name
        self._public_key = public_key
        self._admissions = Admissions()
        self._opened: list[InProcessInbox | InProcessOutbox | InProcessService | InProcessServiceClient] = []
        self._num_addresses = 0

    @property
    def public_key(self) -> str:
        return self._public_key

    def open_inbox(self, port: int = 0) -> Inbox:
        inbox = InProcessInbox(self._network, self._address("inbox", port), self._admissions)
        self._opened.append(inbox)
        self._network.add(inbox)
        return inbox

    def connect(self, peer: PeerAddress) -> Outbox:
        outbox = InProcessOutbox(self._network, peer, self._name, self._public_key)
        self._opened.append(outbox)
        return outbox

    def open_service(self, handler: Handler, port: int = 0) -> Service:
        service = InProcessService(self._address("service", port), handler, self._admissions)
        self._opened.append(service)
        self._network.add_service(service)
        return service

    def connect_service(self, peer: PeerAddress) -> ServiceClient:
        client = InProcessServiceClient(self._network.find_service, peer, self._public_key)
        self._opened.append(client)
        return client

    def admit(self, peer_name: str, public_key: str) -> None:
        with self._network.changed:
            self._admissions.admit(peer_name, public_key)
            self._network.changed.notify_all()

    def expel(self, peer_name: str) -> None:
        self._admissions.expel(peer_name)

    def close(self) -> None:
        for opened in self._opened:
            opened.close()

    def _address(self, kind: str, port: int) -> PeerAddress:
        self._num_addresses += 1
        endpoint = f"in-process://{self._public_key}/{kind}/{port or f'any-{self._num_addresses}'}"
        return PeerAddress(name=self._name, endpoint=endpoint, public_key=self._public_key)


class InProcessInbox:
    def __init__(self, network: InProcessNetwork, address: PeerAddress, admissions: Admissions) -> None:
        self._network = network
        self._address = address
        self._admissions = admissions
        self._queue: deque[tuple[str, list[memoryview]]] = deque()
        self._woken = False
        self._closed = False

    @property
    def address(self) -> PeerAddress:
        return self._address

    def receive(self, timeout_s: float) -> Received | None:
        deadline_s = time.monotonic() + timeout_s
        changed = self._network.changed
        while (received := self.receive_nowait()) is None:
            with changed:
                arrived = changed.wait_for(lambda: self._queue or self._woken, max(0.0, deadline_s - time.monotonic()))
                if self._woken or not arrived:
                    self._woken = False
                    return None
        return received

    def receive_nowait(self) -> Received | None:
        if self._closed:
            raise CommunicationError(f"the inbox of {self._address.name} is closed", self._address.name)
        while (entry := self._take()) is not None:
            public_key, frames = entry
            sender = self._admissions.name_of(public_key)
            if sender is not None:  # else expelled while this was under way
                return unpack(frames, sender, time.monotonic())
        return None

    def accept(self, public_key: str, frames: list[memoryview]) -> bool:
        """Queue the frames if the key is admitted and there is room. The network's lock is held."""
        if self._admissions.name_of(public_key) is None or len(self._queue) >= self._network.capacity:
            return False
        self._queue.append((public_key, frames))
        self._network.changed.notify_all()
        return True

    def wake(self) -> None:
        with self._network.changed:
            self._woken = True
            self._network.changed.notify_all()

    def close(self) -> None:
        self._closed = True
        self._network.remove(self)

    def _take(self) -> tuple[str, list[memoryview]] | None:
        with self._network.changed:
            if not self._queue:
                return None
            self._network.changed.notify_all()  # there is room again
            return self._queue.popleft()


class InProcessOutbox:
    def __init__(self, network: InProcessNetwork, peer: PeerAddress, name: str, public_key: str) -> None:
        self._network = network
        self._peer = peer
        self._name = name
        self._public_key = public_key
        self._closed = False

    @property
    def peer(self) -> PeerAddress:
        return self._peer

    def send(self, message: Message, payload: Buffer | None = None, *, timeout_s: float) -> int:
        frames = pack(message, payload, self._name)
        return self.send_frames(frames, type(message).__name__, timeout_s)

    def send_frames(self, frames: Sequence[Buffer], kind: str, timeout_s: float) -> int:
        """Send frames as they are: the part of `send` below the encoding."""
        if self._closed:
            raise CommunicationError(f"the connection to {self._peer.name} is closed", self._peer.name)
        copies = [memoryview(bytearray(frame)) for frame in frames]
        with self._network.changed:
            if not self._network.changed.wait_for(lambda: self._deliver(copies), timeout_s):
                raise PeerTimeoutError(
                    f"could not send a {kind} to {self._peer.name} within {timeout_s:g} s", self._peer.name
                )
        return sum(copy.nbytes for copy in copies)

    def close(self) -> None:
        self._closed = True

    def _deliver(self, frames: list[memoryview]) -> bool:
        inbox = self._network.find(self._peer)
        return inbox is not None and inbox.accept(self._public_key, frames)
