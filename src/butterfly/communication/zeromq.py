"""Transport over ZeroMQ: PUSH to PULL over TCP, encrypted with CURVE, both ends known by their keys.

The client proves its key to the inbox (see admission_control), the inbox proves the key in its
PeerAddress to the client; whoever fails is never connected, which its peer sees as a timeout. With
`encrypt=False`, for a network that is trusted anyway, the same keys are only claimed (PLAIN).
"""

from __future__ import annotations

import errno
import math
import socket
import threading
import time
from collections.abc import Sequence

import zmq

from butterfly.communication.admission_control import SERVICES_DOMAIN, AdmissionControl
from butterfly.communication.admissions import Admissions
from butterfly.communication.frames import pack, unpack
from butterfly.communication.keys import KeyPair
from butterfly.communication.services import client as service_client
from butterfly.communication.services import server as service_server
from butterfly.communication.services.interface import Handler, Service, ServiceClient
from butterfly.communication.transport import Buffer, Inbox, Outbox, Received
from butterfly.errors import CommunicationError, ConfigError, PeerTimeoutError
from butterfly.messages import Message, PeerAddress

# Messages waiting on each side of a connection. A pipeline has a few steps in flight; what does not fit
# here (and into the kernel's buffers) makes the sender wait, which is the back-pressure.
_QUEUED_MESSAGES = 16
_MAX_FRAME_BYTES = 1 << 30  # longer frames close the connection before any memory is taken
_ZERO_COPY_BYTES = 64 << 10  # below, copying is cheaper than keeping track of the buffer
_SCHEME = "tcp://"
_LINGER_MS = 250  # for a last message (Shutdown, Failed) just before a close
_RECONNECT_MS, _MAX_RECONNECT_MS = 50, 1000
_HANDSHAKE_MS = 10_000  # also how long a key that is not admitted is left waiting

# Only the sending side probes: an inbox that probed a peer in the middle of a long frame would take the
# late answer for a death. 10 s without an answer closes the connection; `worker` and `cluster` decide
# about life and death with their own, shorter deadlines.

_Context = zmq.Context[zmq.Socket[bytes]]
_Socket = zmq.Socket[bytes]


class ZmqTransport:
    """One process's keys, inboxes, outboxes and services on one ZeroMQ context.

    `advertised_host` is what others connect to when `bind_host` is a wildcard ("0.0.0.0", "*").
    Raises ConfigError for keys that are none and for a host that cannot be listened on.
    """

    def __init__(
        self,
        name: str,
        keys: KeyPair,
        bind_host: str = "127.0.0.1",
        encrypt: bool = True,
        advertised_host: str = "",
    ) -> None:
        keys.check()
        if bind_host in ("0.0.0.0", "*", "::") and not advertised_host:
            raise ConfigError(f"listening on {bind_host} needs the host name that others connect to")
        self._name = name
        self._keys = keys
        self._bind_host = bind_host
        self._advertised_host = advertised_host or bind_host
        self._encrypt = encrypt
        self._admissions = Admissions()
        self._lock = threading.Lock()  # guards _opened; connect() may be called from any thread
        self._opened: list[_Opened] = []
        self._context: _Context = zmq.Context()
        self._admission_control = AdmissionControl(self._context, self._admissions)

    @property
    def public_key(self) -> str:
        return self._keys.public_key

    def open_inbox(self, port: int = 0) -> Inbox:
        server = self._context.socket(zmq.PULL)
        self._configure(server, ipv6=":" in self._bind_host)
        server.rcvhwm = _QUEUED_MESSAGES
        server.maxmsgsize = _MAX_FRAME_BYTES
        self._prove_identity(server, encrypt=self._encrypt)
        inbox = ZmqInbox(server, self._bind(server, port), self._admissions)
        self._remember(inbox)
        return inbox

    def open_service(self, handler: Handler, port: int = 0) -> Service:
        """As `Services` says. Calls are encrypted whatever messages are."""
        server = self._context.socket(zmq.ROUTER)
        self._configure(server, ipv6=":" in self._bind_host)
        server.rcvhwm, server.sndhwm = service_server.QUEUED_CALLS, service_server.QUEUED_ANSWERS
        server.maxmsgsize = service_server.MAX_FRAME_BYTES
        server.linger = _LINGER_MS
        server.zap_domain = SERVICES_DOMAIN.encode("ascii")
        self._prove_identity(server, encrypt=True)
        service = service_server.ZmqService(server, self._bind(server, port), handler, self._admissions)
        self._remember(service)
        return service

    def connect(self, peer: PeerAddress) -> Outbox:
        client = self._context.socket(zmq.PUSH)
        client.sndhwm = _QUEUED_MESSAGES
        client.copy_threshold = _ZERO_COPY_BYTES
        self._connect(client, peer, encrypt=self._encrypt)
        client.linger = _LINGER_MS
        outbox = ZmqOutbox(client, peer, self._name)
        self._remember(outbox)
        return outbox

    def connect_service(self, peer: PeerAddress) -> ServiceClient:
        client = self._context.socket(zmq.DEALER)
        client.maxmsgsize = service_client.MAX_FRAME_BYTES
        self._connect(client, peer, encrypt=True)
        asking = service_client.ZmqServiceClient(client, peer)
        self._remember(asking)
        return asking

    def admit(self, peer_name: str, public_key: str) -> None:
        self._admissions.admit(peer_name, public_key)
        self._admission_control.reconsider()

    def expel(self, peer_name: str) -> None:
        self._admissions.expel(peer_name)

    def close(self) -> None:
        """Close everything. Takes at most a fraction of a second, for messages just queued."""
        if self._context.closed:
            return
        with self._lock:
            opened = list(self._opened)
        for each in opened:  # without the lock: a service waits for its handler, which may be connecting
            each.close()
        self._admission_control.close()
        self._context.term()

    def _remember(self, opened: _Opened) -> None:
        with self._lock:
            self._opened = [known for known in self._opened if not known.closed]
            self._opened.append(opened)

    def _configure(self, sock: _Socket, ipv6: bool) -> None:
        sock.linger = 0
        sock.ipv6 = ipv6
        sock.handshake_ivl = _HANDSHAKE_MS
        # No heartbeats of ZeroMQ's: one that lies unread in a full inbox whose sender has died aborts the whole process
        # (an assertion in libzmq's stream engine). Silence is judged by our own heartbeats; TCP looks after dead links.
        sock.tcp_keepalive = 1
        sock.tcp_keepalive_idle, sock.tcp_keepalive_intvl, sock.tcp_keepalive_cnt = 10, 5, 3

    def _prove_identity(self, server: _Socket, *, encrypt: bool) -> None:
        if encrypt:
            server.curve_server = True
            server.curve_secretkey = self._keys.secret_key.encode()
        else:
            server.plain_server = True

    def _bind(self, server: _Socket, port: int) -> PeerAddress:
        """Return where others connect to. Raises ConfigError, and then the socket is closed."""
        try:
            server.bind(f"tcp://{_bracketed(self._bind_host)}:{port or '*'}")
        except zmq.ZMQError as error:
            server.close()
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"port {port} is taken: something listens on {self._bind_host} there") from error
            where = f"{self._bind_host}, port {port}" if port else self._bind_host
            raise ConfigError(f"cannot listen on {where}: {error}") from error
        bound_port = server.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        endpoint = f"tcp://{_bracketed(self._advertised_host)}:{bound_port}"
        return PeerAddress(name=self._name, endpoint=endpoint, public_key=self.public_key)

    def _connect(self, client: _Socket, peer: PeerAddress, *, encrypt: bool) -> None:
        """Raises CommunicationError for what cannot be an address, and then the socket is closed."""
        if not peer.endpoint.startswith(_SCHEME):  # a peer's word must not lead to sockets inside this machine
            client.close()
            raise CommunicationError(f"the address of {peer.name} is no {_SCHEME}: {peer.endpoint!r}", peer.name)
        self._configure(client, ipv6="[" in peer.endpoint)
        client.immediate = True  # queue for a live connection only, so that a missing peer is a timeout
        client.reconnect_ivl, client.reconnect_ivl_max = _RECONNECT_MS, _MAX_RECONNECT_MS
        try:
            self._identify(client, peer, encrypt=encrypt)
            client.connect(peer.endpoint)
        except (zmq.ZMQError, UnicodeEncodeError) as error:
            client.close()
            raise CommunicationError(
                f"the address of {peer.name} is not usable ({peer.endpoint!r}): {error}", peer.name
            ) from error

    def _identify(self, client: _Socket, peer: PeerAddress, *, encrypt: bool) -> None:
        if encrypt:
            client.curve_publickey = self._keys.public_key.encode("ascii")
            client.curve_secretkey = self._keys.secret_key.encode("ascii")
            client.curve_serverkey = peer.public_key.encode("ascii")
        else:
            client.plain_username = self._keys.public_key.encode("ascii")
            client.plain_password = b"-"  # the mechanism wants one


class ZmqInbox:
    """A bound PULL socket, and a pair of plain sockets through which any thread can wake it."""

    def __init__(self, server: _Socket, address: PeerAddress, admissions: Admissions) -> None:
        self._socket = server
        self._address = address
        self._admissions = admissions
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(server, zmq.POLLIN)
        self._poller.register(self._wake_reader.fileno(), zmq.POLLIN)

    @property
    def address(self) -> PeerAddress:
        return self._address

    @property
    def closed(self) -> bool:
        return self._socket.closed

    def receive(self, timeout_s: float) -> Received | None:
        deadline_s = time.monotonic() + timeout_s
        while (received := self.receive_nowait()) is None:
            events = dict(self._poller.poll(_milliseconds_until(deadline_s)))
            if self._wake_reader.fileno() in events:
                self._wake_reader.recv(4096)  # many wakes are one
                return None
            if not events:
                return None
        return received

    def receive_nowait(self) -> Received | None:
        if self.closed:
            raise CommunicationError(f"the inbox of {self._address.name} is closed", self._address.name)
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            sender = self._admissions.name_of(_proven_key(frames[0]))
            if sender is not None:  # else expelled while the message was under way
                return unpack([frame.buffer for frame in frames], sender, time.monotonic())

    def wake(self) -> None:
        # No lock: a signal handler may call this while its own thread is inside `receive`.
        try:
            self._wake_writer.send(b"\0")
        except BlockingIOError:
            return  # thousands of wakes are waiting already
        except OSError:
            if not self.closed:
                raise

    def close(self) -> None:
        self._socket.close()
        self._wake_reader.close()
        self._wake_writer.close()


class ZmqOutbox:
    """A connected PUSH socket."""

    def __init__(self, client: _Socket, peer: PeerAddress, name: str) -> None:
        self._socket = client
        self._peer = peer
        self._name = name

    @property
    def peer(self) -> PeerAddress:
        return self._peer

    @property
    def closed(self) -> bool:
        return self._socket.closed

    def send(self, message: Message, payload: Buffer | None = None, *, timeout_s: float) -> int:
        frames = pack(message, payload, self._name)
        return self.send_frames(frames, type(message).__name__, timeout_s)

    def send_frames(self, frames: Sequence[Buffer], kind: str, timeout_s: float) -> int:
        """Send frames as they are: the part of `send` below the encoding."""
        if self.closed:
            raise CommunicationError(f"the connection to {self._peer.name} is closed", self._peer.name)
        deadline_s = time.monotonic() + timeout_s
        while not self._send_nowait(frames):
            if time.monotonic() >= deadline_s:
                raise PeerTimeoutError(
                    f"could not send a {kind} to {self._peer.name} at {self._peer.endpoint} within"
                    f" {timeout_s:g} s: it is unreachable, refuses us, or does not keep up",
                    self._peer.name,
                )
            self._socket.poll(_milliseconds_until(deadline_s), zmq.POLLOUT)
        return sum(memoryview(frame).nbytes for frame in frames)

    def close(self) -> None:
        self._socket.close()

    def _send_nowait(self, frames: Sequence[Buffer]) -> bool:
        # The first frame finds a queue for the whole message; the others then never wait.
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True


_Opened = ZmqInbox | ZmqOutbox | service_server.ZmqService | service_client.ZmqServiceClient


def _proven_key(frame: zmq.Frame) -> str:
    """Return the public key that the connection of this frame was admitted with."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _milliseconds_until(deadline_s: float) -> int:
    return max(0, math.ceil((deadline_s - time.monotonic()) * 1000))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
