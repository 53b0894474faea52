"""Questions that one process asks another, and answers: joining by a secret, and bytes by their digest.

Unlike a message, a call has an answer and belongs to no plan. Connections are always encrypted, and the one who is
asked proves its key; the key of the one who asks is proven too, but may be anybody's: each call says who may make it.
Nothing is ever unpickled.
"""

from __future__ import annotations

import msgspec

from butterfly.errors import ProtocolError
from butterfly.specs import Spec

DIGEST = "blake2b-256"  # of every digest here, in hex


class _Call(Spec, frozen=True, tag=True):
    pass


# ---------------------------------------------------------------------------- stranger -> coordinator


class Knock(_Call, frozen=True):
    """May I work for you? `secret` is that of a join token. Anybody may ask. Answered with Welcome or Refused."""

    secret: str
    name: str  # the name that it wants
    protocol_version: int
    version: str  # of Butterfly, for people
    host: str = ""


class Welcome(_Call, frozen=True):
    """The key that asked is admitted under this name: join at this port of the host that was asked."""

    name: str
    inbox_port: int
    inbox_name: str  # whose inbox it is: the coordinator's name
    encrypt: bool  # whether messages are encrypted


# ---------------------------------------------------------------------------- worker -> coordinator, or a peer


class DescribeTensors(_Call, frozen=True):
    """What are the digests of these tensors of the model? Of the coordinator; admitted workers may ask."""

    names: tuple[str, ...]


class TensorDigests(_Call, frozen=True):
    """The answer, in the order of the names."""

    digests: tuple[str, ...]


class FetchBlob(_Call, frozen=True):
    """Give me bytes [start, start + num_bytes) of what has this digest, as far as there are any."""

    digest: str
    start: int
    num_bytes: int


class BlobPart(_Call, frozen=True):
    """The answer, with the bytes as payload."""

    total_bytes: int  # of the whole


# ---------------------------------------------------------------------------- any answer


class Refused(_Call, frozen=True):
    """No, for this reason; `is_final`: asking again will not help."""

    reason: str
    is_final: bool = True


Call = Knock | DescribeTensors | FetchBlob
Answer = Welcome | TensorDigests | BlobPart | Refused

_encoder = msgspec.msgpack.Encoder()
_call_decoder: msgspec.msgpack.Decoder[Call] = msgspec.msgpack.Decoder(Call)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(words: Call | Answer) -> bytes:
    """Return a call or an answer as msgpack."""
    return _encoder.encode(words)


def decode_call(frame: bytes | memoryview, peer: str) -> Call:
    """Return the call in `frame`. Raises ProtocolError naming `peer` for anything else."""
    try:
        return _call_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{peer or 'a peer'} made a malformed call: {error}", peer) from error


def decode_answer(frame: bytes | memoryview, peer: str) -> Answer:
    """Return the answer in `frame`. Raises ProtocolError naming `peer` for anything else."""
    try:
        return _answer_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{peer or 'a peer'} gave a malformed answer: {error}", peer) from error
