"""Calls over a ZeroMQ DEALER socket, several under way at once, matched with their answers by number."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence

import zmq

from butterfly.calls import Answer, Call, decode_answer, encode
from butterfly.communication.services.checks import check_answer
from butterfly.communication.services.desk import NUMBER_BYTES
from butterfly.communication.services.interface import MAX_PART_BYTES, NUM_UNDER_WAY, WhileWaiting
from butterfly.errors import CommunicationError, PeerTimeoutError, ProtocolError
from butterfly.messages import PeerAddress

MAX_FRAME_BYTES = MAX_PART_BYTES

_LOOK_UP_MS = 100  # how often `while_waiting` is called

_Answered = tuple[Answer, memoryview | None]


class ZmqServiceClient:
    """Takes over a connected DEALER socket."""

    def __init__(self, dealer: zmq.Socket[bytes], peer: PeerAddress) -> None:
        self._dealer = dealer
        self._peer = peer
        self._num_calls = 0
        self._under_way: set[int] = set()
        self._arrived: dict[int, _Answered] = {}  # before they were waited for

    @property
    def peer(self) -> PeerAddress:
        return self._peer

    @property
    def closed(self) -> bool:
        return self._dealer.closed

    def call(self, call: Call, timeout_s: float, *, while_waiting: WhileWaiting | None = None) -> _Answered:
        return next(self.call_many([call], timeout_s, while_waiting=while_waiting))

    def call_many(
        self,
        calls: Iterable[Call],
        timeout_s: float,
        *,
        num_under_way: int = NUM_UNDER_WAY,
        while_waiting: WhileWaiting | None = None,
    ) -> Generator[_Answered, None, None]:
        waiting: deque[tuple[int, Call]] = deque()
        try:
            for call in calls:
                waiting.append((self._send(call, timeout_s, while_waiting), call))
                if len(waiting) >= num_under_way:
                    yield self._next_answer(waiting, timeout_s, while_waiting)
            while waiting:
                yield self._next_answer(waiting, timeout_s, while_waiting)
        finally:
            for number, _ in waiting:  # whose answers nobody will ask for
                self._under_way.discard(number)
                self._arrived.pop(number, None)

    def close(self) -> None:
        self._dealer.close()

    def _send(self, call: Call, timeout_s: float, while_waiting: WhileWaiting | None) -> int:
        number = self._num_calls = self._num_calls + 1
        frames = [number.to_bytes(NUMBER_BYTES, "big"), encode(call)]
        deadline_s = time.monotonic() + timeout_s
        while not self._send_nowait(frames):
            if time.monotonic() >= deadline_s:
                raise PeerTimeoutError(
                    f"could not reach {self._peer.name} at {self._peer.endpoint} within {timeout_s:g} s: nobody"
                    " answers there, or with another key than expected",
                    self._peer.name,
                )
            self._wait_for(zmq.POLLOUT, deadline_s, while_waiting)
        self._under_way.add(number)
        return number

    def _send_nowait(self, frames: Sequence[bytes]) -> bool:
        try:
            self._dealer.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise self._closed_error() from error
        return True

    def _next_answer(
        self, waiting: deque[tuple[int, Call]], timeout_s: float, while_waiting: WhileWaiting | None
    ) -> _Answered:
        number, call = waiting[0]
        deadline_s = time.monotonic() + timeout_s
        while number not in self._arrived:
            if not self._receive_nowait():
                if time.monotonic() >= deadline_s:
                    raise PeerTimeoutError(
                        f"{self._peer.name} at {self._peer.endpoint} did not answer {type(call).__name__} within"
                        f" {timeout_s:g} s",
                        self._peer.name,
                    )
                self._wait_for(zmq.POLLIN, deadline_s, while_waiting)
        waiting.popleft()
        answer, payload = self._arrived.pop(number)
        check_answer(call, answer, None if payload is None else payload.nbytes, self._peer.name)
        return answer, payload

    def _receive_nowait(self) -> bool:
        """Take one answer, if one is there. Raises ProtocolError for what is none."""
        try:
            frames = self._dealer.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise self._closed_error() from error
        peer = self._peer.name
        if not 2 <= len(frames) <= 3 or len(frames[0]) != NUMBER_BYTES:
            raise ProtocolError(f"{peer} sent {len(frames)} frames that are no answer", peer)
        number = int.from_bytes(frames[0].bytes, "big")
        if number in self._under_way:  # else it was given up
            self._under_way.remove(number)
            answer = decode_answer(frames[1].buffer, peer)
            self._arrived[number] = answer, frames[2].buffer if len(frames) == 3 else None
        return True

    def _wait_for(self, event: int, deadline_s: float, while_waiting: WhileWaiting | None) -> None:
        remaining_ms = max(0, math.ceil((deadline_s - time.monotonic()) * 1000))
        self._dealer.poll(min(_LOOK_UP_MS, remaining_ms), event)
        if while_waiting is not None:
            while_waiting()

    def _closed_error(self) -> CommunicationError:
        return CommunicationError(f"the connection to {self._peer.name} is closed", self._peer.name)
