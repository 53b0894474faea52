"""The in-memory twin of a service: calls go through the same encoding and checks, without a thread or a wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable

from butterfly.calls import Answer, Call, decode_answer, encode
from butterfly.communication.admissions import Admissions
from butterfly.communication.services.checks import check_answer
from butterfly.communication.services.desk import NUMBER_BYTES, Desk
from butterfly.communication.services.interface import NUM_UNDER_WAY, Handler, WhileWaiting
from butterfly.communication.transport import Buffer
from butterfly.errors import CommunicationError, PeerTimeoutError
from butterfly.messages import PeerAddress


class InProcessService:
    def __init__(self, address: PeerAddress, handler: Handler, admissions: Admissions) -> None:
        self._address = address
        self._desk = Desk(handler, admissions)
        self._lock = threading.Lock()  # a handler is asked by one thread at a time
        self.closed = False

    @property
    def address(self) -> PeerAddress:
        return self._address

    def reply(self, public_key: str, frames: list[Buffer]) -> list[Buffer] | None:
        with self._lock:
            return self._desk.reply(public_key, "in-process", frames)

    def close(self) -> None:
        self.closed = True


class InProcessServiceClient:
    """`find` returns the service of the peer, while there is one with the expected key."""

    def __init__(self, find: Callable[[PeerAddress], InProcessService | None], peer: PeerAddress, key: str) -> None:
        self._find, self._peer, self._key = find, peer, key
        self._closed = False

    @property
    def peer(self) -> PeerAddress:
        return self._peer

    def call(
        self, call: Call, timeout_s: float, *, while_waiting: WhileWaiting | None = None
    ) -> tuple[Answer, memoryview | None]:
        if self._closed:
            raise CommunicationError(f"the connection to {self._peer.name} is closed", self._peer.name)
        service = self._find(self._peer)
        frames = None if service is None else service.reply(self._key, [bytes(NUMBER_BYTES), encode(call)])
        if frames is None:
            raise PeerTimeoutError(f"{self._peer.name} did not answer within {timeout_s:g} s", self._peer.name)
        answer = decode_answer(bytes(frames[1]), self._peer.name)
        payload = memoryview(bytearray(frames[2])) if len(frames) == 3 else None
        check_answer(call, answer, None if payload is None else payload.nbytes, self._peer.name)
        return answer, payload

    def call_many(
        self,
        calls: Iterable[Call],
        timeout_s: float,
        *,
        num_under_way: int = NUM_UNDER_WAY,
        while_waiting: WhileWaiting | None = None,
    ) -> Generator[tuple[Answer, memoryview | None], None, None]:
        for call in calls:
            yield self.call(call, timeout_s)

    def close(self) -> None:
        self._closed = True
