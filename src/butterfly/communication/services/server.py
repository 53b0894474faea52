"""A service on a ZeroMQ ROUTER socket, with a thread that answers calls one after the other."""

from __future__ import annotations

import socket
import threading

import zmq

from butterfly.communication.admissions import Admissions
from butterfly.communication.services.desk import Desk
from butterfly.communication.services.interface import MAX_CALL_BYTES, MAX_PART_BYTES, NUM_UNDER_WAY, Handler
from butterfly.communication.transport import Buffer
from butterfly.messages import PeerAddress

# libzmq closes the connection of whoever sends a longer frame, before it takes memory for it, and tells nobody. What is
# too long for a call but not for this is refused in words.
MAX_FRAME_BYTES = 4 * MAX_CALL_BYTES

# Of one caller, waiting on either side. Answers to one that does not take them are dropped beyond this: it must not
# cost us more memory than this many parts.
QUEUED_ANSWERS = 2 * NUM_UNDER_WAY
QUEUED_CALLS = 4 * NUM_UNDER_WAY

_ZERO_COPY_BYTES = 64 << 10
assert MAX_PART_BYTES * QUEUED_ANSWERS <= 64 << 20


class ZmqService:
    """Takes over a bound ROUTER socket. Its thread ends with `close`."""

    def __init__(
        self, router: zmq.Socket[bytes], address: PeerAddress, handler: Handler, admissions: Admissions
    ) -> None:
        self._router = router
        self._address = address
        self._desk = Desk(handler, admissions)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=f"service-{address.name}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> PeerAddress:
        return self._address

    @property
    def closed(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Stop the thread and wait for it: as long as the handler takes for one call."""
        if self._closing:
            return
        self._closing = True
        self._wake_writer.send(b"\0")
        self._thread.join()
        self._wake_reader.close()
        self._wake_writer.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_reader.fileno(), zmq.POLLIN)
        try:
            while not self._closing:
                if self._router in dict(poller.poll()):
                    self._answer_one()
        finally:
            self._router.close()

    def _answer_one(self) -> None:
        try:
            frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:  # the connection closed in the middle of its message
            return
        envelope, words = frames[0], frames[1:]
        if not words:
            return
        key, host = _property(words[0], "User-Id"), _property(words[0], "Peer-Address")
        reply = self._desk.reply(key, host, [frame.buffer for frame in words])
        if reply is not None:
            self._send([envelope.bytes, *reply])

    def _send(self, frames: list[Buffer]) -> None:
        # A ROUTER never waits: what a caller has no room for, or is not there any more to take, is dropped.
        for frame in frames[:-1]:
            self._router.send(frame, zmq.SNDMORE)
        is_large = memoryview(frames[-1]).nbytes >= _ZERO_COPY_BYTES
        self._router.send(frames[-1], 0, copy=not is_large)


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
