"""libzmq asks one handler per context whether a key may come in (ZAP, ZeroMQ RFC 27). This is ours.

A peer may well try to connect an instant before it is admitted. Refusing it would make its libzmq give
up for good (status 400) or hang until its handshake times out (status 300). So the question of an
unknown key is simply left open: it is answered when the key is admitted, and a stranger is disconnected
by the handshake deadline without having learned anything.

Services are another domain: everybody who proves a key may connect, since a stranger must be able to ask for its
admission. What a key may ask there is decided call by call (see `services.desk`).
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import NamedTuple

import zmq
from zmq.utils import z85

from butterfly.communication.admissions import Admissions

SERVICES_DOMAIN = "services"  # of sockets that let every proven key in

_ENDPOINT = "inproc://zeromq.zap.01"
_MAX_OPEN_QUESTIONS = 1024  # then the oldest is forgotten; its connection times out as any stranger's


class _Question(NamedTuple):
    envelope: list[bytes]  # routing id and delimiter, to be given back
    version: bytes
    request_id: bytes
    domain: str
    public_key: str  # "" for a mechanism that we do not speak


class AdmissionControl:
    """A thread that answers libzmq's questions for one context from a table of admitted keys.

    Must be started before the context's first server socket binds, and closed after the last one.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], admissions: Admissions) -> None:
        self._admissions = admissions
        self._open_questions: deque[_Question] = deque(maxlen=_MAX_OPEN_QUESTIONS)
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="admission-control", daemon=True)
        self._thread.start()

    def reconsider(self) -> None:
        """Look again at the open questions: the table has changed. Callable from any thread."""
        self._wake_writer.send(b"\0")

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._closing = True
        self._wake_writer.send(b"\0")
        self._thread.join()
        self._wake_reader.close()
        self._wake_writer.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_reader.fileno(), zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll())
            if self._wake_reader.fileno() in ready:
                self._wake_reader.recv(4096)
            if self._socket in ready:
                self._open_questions.append(_parse(self._socket.recv_multipart()))
            self._answer_what_is_known()
        self._socket.close()

    def _answer_what_is_known(self) -> None:
        for _ in range(len(self._open_questions)):
            question = self._open_questions.popleft()
            if self._may_enter(question):
                self._socket.send_multipart(_yes(question))  # to a connection that is gone: goes nowhere
            else:
                self._open_questions.append(question)

    def _may_enter(self, question: _Question) -> bool:
        if question.domain == SERVICES_DOMAIN:
            return bool(question.public_key)
        return self._admissions.name_of(question.public_key) is not None


def _parse(frames: list[bytes]) -> _Question:
    # routing id, empty, version, request id, domain, address, peer's routing id, mechanism, credentials...
    envelope, (version, request_id, domain, _, _, mechanism), credentials = frames[:2], frames[2:8], frames[8:]
    public_key = ""
    if mechanism == b"CURVE":
        public_key = z85.encode(credentials[0]).decode("ascii")
    elif mechanism == b"PLAIN":  # links without encryption: the key is claimed, not proven
        public_key = credentials[0].decode("ascii", errors="replace")
    return _Question(envelope, version, request_id, domain.decode("ascii", errors="replace"), public_key)


def _yes(question: _Question) -> list[bytes]:
    user_id = question.public_key.encode("ascii")  # comes back with every frame of this connection
    return [*question.envelope, question.version, question.request_id, b"200", b"OK", user_id, b""]
