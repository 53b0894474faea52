"""What encryption costs on this machine: a link from this process to itself, through the transport that carries steps.

Both ends are in one thread, so the latency is that of ends that are awake. What encrypts and decrypts are two more
threads, as between two workers of one machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median

from butterfly.communication import Inbox, KeyPair, Outbox, ZmqTransport
from butterfly.errors import PeerTimeoutError
from butterfly.messages import Probe, TensorHeader
from butterfly.specs import Spec

SMALL_BYTES, LARGE_BYTES = 4 << 10, 1 << 20
_MOST_SMALL, _SMALL_S = 300, 0.15
_WINDOW = 4  # large messages under way: fewer than any queue on the way holds
_MOST_LARGE, _LARGE_S = 128, 0.25
_WARM_UP = 3
_DEADLINE_S = 5.0
_NAMES = ("one end", "the other end")
_VALUE_BYTES = 2  # of bfloat16, as which a payload is announced


class LoopbackSpeed(Spec, frozen=True):
    """Of a link through this machine's own network stack."""

    encrypted: bool
    latency_s: float  # of a message of 4 KiB, one way
    bytes_per_s: tuple[float, float]  # of messages of 1 MiB, there and back


@dataclass(frozen=True)
class _Way:
    """From one end to the other."""

    outbox: Outbox
    inbox: Inbox
    reply_to: Inbox

    def send(self, payload: memoryview) -> None:
        header = TensorHeader(dtype="bfloat16", shape=(payload.nbytes // _VALUE_BYTES,))
        probe = Probe(epoch=0, number=0, reply_to=self.reply_to.address, payload=header)
        self.outbox.send(probe, payload, timeout_s=_DEADLINE_S)

    def receive(self) -> None:
        """Raises PeerTimeoutError."""
        if self.inbox.receive(_DEADLINE_S) is None:
            sender = self.reply_to.address.name
            raise PeerTimeoutError(f"nothing came from {sender} over loopback within {_DEADLINE_S:g} s", sender)


def measure_loopback(*, encrypt: bool) -> LoopbackSpeed:
    """Measure for less than a second, everything opened being closed again. Raises CommunicationError."""
    noise = memoryview(random.Random(0).randbytes(LARGE_BYTES))  # which nothing on the way can compress
    with _ways(encrypt) as (there, back):
        for way in (there, back):
            for _ in range(_WARM_UP):
                _one_way_s(way, noise)
        return LoopbackSpeed(
            encrypted=encrypt,
            latency_s=_latency_s(there, noise[:SMALL_BYTES]),
            bytes_per_s=(_bytes_per_s(there, noise), _bytes_per_s(back, noise)),
        )


@contextmanager
def _ways(encrypt: bool) -> Iterator[tuple[_Way, _Way]]:
    """There and back between two transports that know each other."""
    with (
        closing(ZmqTransport(_NAMES[0], KeyPair.generate(), encrypt=encrypt)) as one,
        closing(ZmqTransport(_NAMES[1], KeyPair.generate(), encrypt=encrypt)) as other,
    ):
        one.admit(_NAMES[1], other.public_key)
        other.admit(_NAMES[0], one.public_key)
        one_inbox, other_inbox = one.open_inbox(), other.open_inbox()
        there = _Way(one.connect(other_inbox.address), other_inbox, one_inbox)
        yield there, _Way(other.connect(one_inbox.address), one_inbox, other_inbox)


def _one_way_s(way: _Way, payload: memoryview) -> float:
    sent_s = time.monotonic()
    way.send(payload)
    way.receive()
    return time.monotonic() - sent_s


def _latency_s(way: _Way, payload: memoryview) -> float:
    """The median, one message after the other."""
    seconds: list[float] = []
    while len(seconds) < _MOST_SMALL and sum(seconds) < _SMALL_S:
        seconds.append(_one_way_s(way, payload))
    return median(seconds)


def _bytes_per_s(way: _Way, payload: memoryview) -> float:
    """With a few messages under way all the time."""
    started_s = ended_s = time.monotonic()
    num_sent = num_received = 0
    while num_received < _MOST_LARGE and ended_s - started_s < _LARGE_S:
        while num_sent < num_received + _WINDOW:
            way.send(payload)
            num_sent += 1
        way.receive()
        num_received += 1
        ended_s = time.monotonic()
    for _ in range(num_sent - num_received):
        way.receive()
    return num_received * payload.nbytes / max(ended_s - started_s, time.get_clock_info("monotonic").resolution)
