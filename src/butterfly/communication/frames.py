"""The shape of one message on the wire: `[message]` or `[message, payload]`, nothing else.

Shared by every transport, so that what one implementation refuses, all refuse.
"""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.communication.hidden import tensor_num_bytes
from butterfly.communication.transport import Buffer, Received
from butterfly.errors import ProtocolError
from butterfly.messages import Message, Probe, Step, decode, encode


def pack(message: Message, payload: Buffer | None, sender: str) -> list[Buffer]:
    """Return the frames of a message. Raises ProtocolError when it does not describe its payload."""
    _check_payload(message, None if payload is None else memoryview(payload).nbytes, sender)
    return [encode(message)] if payload is None else [encode(message), _as_bytes(payload)]


def unpack(frames: Sequence[memoryview], sender: str, received_s: float) -> Received:
    """Return the message in `frames`. Raises ProtocolError naming `sender` for any other shape."""
    if not 1 <= len(frames) <= 2:
        raise ProtocolError(f"{sender} sent {len(frames)} frames where a message has one or two", sender)
    message = decode(frames[0], sender)
    payload = frames[1] if len(frames) == 2 else None
    _check_payload(message, None if payload is None else payload.nbytes, sender)
    num_bytes = sum(frame.nbytes for frame in frames)
    return Received(message, payload, sender, num_bytes, received_s)


def _check_payload(message: Message, num_bytes: int | None, sender: str) -> None:
    header = None
    if isinstance(message, Step):
        header = message.hidden
    elif isinstance(message, Probe):
        header = message.payload
    announced = None if header is None else tensor_num_bytes(header)
    if announced != num_bytes:
        raise ProtocolError(
            f"{sender} sent a {type(message).__name__} with {_describe(num_bytes)}"
            f" where its header announces {_describe(announced)}",
            sender,
        )


def _describe(num_bytes: int | None) -> str:
    return "no payload" if num_bytes is None else f"a payload of {num_bytes} bytes"


def _as_bytes(payload: Buffer) -> Buffer:
    view = memoryview(payload)
    if view.nbytes == 0:
        return b""  # a view with a zero in its shape cannot be cast
    return view.cast("B")
