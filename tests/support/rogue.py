"""Somebody who does not keep to the protocol, with whatever key it has come by."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from butterfly import __version__
from butterfly.calls import Answer, Knock
from butterfly.communication import KeyPair, ZmqTransport
from butterfly.communication.identity import JoinLine
from butterfly.communication.zeromq import ZmqOutbox
from butterfly.errors import PeerTimeoutError
from butterfly.messages import (
    PROTOCOL_VERSION,
    Echo,
    Heartbeat,
    Loaded,
    LoadProgress,
    Message,
    PeerAddress,
    Ping,
    Result,
    Step,
    TensorHeader,
    encode,
)
from butterfly.specs import SampledToken, SequenceStep, StepPlan
from tests.support.product import PATIENCE_S

_CONNECT_S = 2.0
_SEND_S = 5.0

GREETING = b"\xff\0\0\0\0\0\0\0\0\x7f\3\1CURVE".ljust(64, b"\0")
"""How a client of ZeroMQ's protocol, version 3.1, with CURVE begins."""


class Rogue:
    """Sends what it likes."""

    def __init__(self, name: str, keys: KeyPair) -> None:
        self._transport = ZmqTransport(name, keys)

    def knock(self, line: JoinLine, name: str, protocol_version: int = PROTOCOL_VERSION) -> Answer:
        call = Knock(
            secret=line.secret, name=name, protocol_version=protocol_version, version=__version__, host="rogue"
        )
        with closing(self._transport.connect_service(line.door)) as client:
            answer, _ = client.call(call, PATIENCE_S)
        return answer

    @contextmanager
    def talking_to(self, public_key: str, *ports: int) -> Iterator[ZmqOutbox]:
        """A connection to the inbox at one of these ports, where others may answer calls."""
        for port in ports:
            peer = PeerAddress(name="victim", endpoint=f"tcp://127.0.0.1:{port}", public_key=public_key)
            outbox = self._transport.connect(peer)
            assert isinstance(outbox, ZmqOutbox)
            with closing(outbox):
                try:
                    outbox.send(Echo(epoch=0, number=0), timeout_s=_CONNECT_S)
                except PeerTimeoutError:
                    continue
                yield outbox
                return
        raise AssertionError(f"no inbox at {ports} lets this key in")

    def close(self) -> None:
        self._transport.close()


@contextmanager
def rogue(name: str, keys: KeyPair) -> Iterator[Rogue]:
    with closing(Rogue(name, keys)) as somebody:
        yield somebody


def send_all(outbox: ZmqOutbox, frames: Sequence[Sequence[bytes]]) -> None:
    for each in frames:
        outbox.send_frames(each, "Fuzz", _SEND_S)


def nonsense(chance: random.Random, count: int, messages: Sequence[Message]) -> list[list[bytes]]:
    """Frames of nothing, of noise, too many of them, and of these messages with some bytes changed or missing."""
    return [_one_nonsense(chance, encode(chance.choice(messages))) for _ in range(count)]


def _one_nonsense(chance: random.Random, frame: bytes) -> list[bytes]:
    match chance.randrange(5):
        case 0:
            return [chance.randbytes(chance.choice((0, 1, 7, 300, 70_000)))]
        case 1:
            return [frame[: chance.randrange(len(frame))]]
        case 2:
            return [frame, chance.randbytes(chance.randrange(64))]  # a payload that nothing announces
        case 3:
            return [chance.randbytes(9)] * chance.randint(3, 40)
        case _:
            changed = bytearray(frame)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            return [bytes(changed)]


def harmless_messages(worker: str, epoch: int) -> list[Message]:
    """What a worker may say without being taken for lost, if one of them comes through unharmed."""
    return [
        Heartbeat(epoch=epoch, worker=worker, resident_bytes=1, kv_used_bytes=1, last_step_id=1),
        Loaded(epoch=epoch - 1, worker=worker, weight_bytes=1),
        LoadProgress(epoch=epoch - 1, worker=worker, loaded_bytes=1, total_bytes=2),
        old_result(epoch),
        Ping(epoch=epoch),
        a_step(epoch, step_id=1, shape=(1, 4)),
    ]


def old_result(epoch: int) -> Result:
    sample = SampledToken(sequence_id=1, position=9, token_id=7)
    return Result(epoch=epoch, step_id=1, samples=(sample,), timings=())


def a_step(epoch: int, step_id: int, shape: tuple[int, int], start: int = 0) -> Step:
    """A step of a sequence that there is not, with `shape[0]` tokens."""
    sequence = SequenceStep(sequence_id=1 << 40, start=start, num_tokens=shape[0], prompt_length=shape[0])
    plan = StepPlan(step_id=step_id, slot=0, sequences=(sequence,))
    return Step(epoch=epoch, plan=plan, hidden=TensorHeader(dtype="bfloat16", shape=shape))


def hangs_up_on(port: int, words: bytes) -> bool:
    """Whether who listens there closes the connection of a stranger who says this."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.settimeout(_SEND_S)
        try:
            connection.sendall(words)
            while connection.recv(4096):
                continue
        except TimeoutError:
            return False
        except OSError:  # reset
            return True
        return True
