"""What may be asked, and what must be answered to it."""

from __future__ import annotations

from butterfly.blobs import is_digest
from butterfly.calls import Answer, BlobPart, Call, DescribeTensors, FetchBlob, Knock, Refused, TensorDigests, Welcome
from butterfly.communication.services.interface import MAX_PART_BYTES
from butterfly.errors import ProtocolError

_ANSWER_TO: dict[type[Call], type[Answer]] = {Knock: Welcome, DescribeTensors: TensorDigests, FetchBlob: BlobPart}


def objection_to(call: Call) -> str:
    """Return what is wrong with the figures of a call; "" when nothing is."""
    if not isinstance(call, FetchBlob):
        return ""
    if call.start < 0 or not 0 <= call.num_bytes <= MAX_PART_BYTES:
        return f"{call.num_bytes} bytes from {call.start} on cannot be fetched with one call"
    return "" if is_digest(call.digest) else "that is no digest"


def check_answer(call: Call, answer: Answer, num_bytes: int | None, peer: str) -> None:
    """Raise ProtocolError naming the peer unless it is an answer to this call, with the payload that it must have."""
    if isinstance(answer, Refused):
        expected_bytes = None
    elif not isinstance(answer, _ANSWER_TO[type(call)]):
        raise ProtocolError(f"{peer} answered {type(call).__name__} with {type(answer).__name__}", peer)
    elif isinstance(call, FetchBlob) and isinstance(answer, BlobPart):
        expected_bytes = max(0, min(call.num_bytes, answer.total_bytes - call.start))
    else:
        expected_bytes = None
    if num_bytes != expected_bytes:
        raise ProtocolError(
            f"{peer} answered {type(call).__name__} with {_bytes(num_bytes)} where there must be"
            f" {_bytes(expected_bytes)}",
            peer,
        )
    if isinstance(call, DescribeTensors) and isinstance(answer, TensorDigests):
        if len(answer.digests) != len(call.names):
            raise ProtocolError(f"{peer} gave {len(answer.digests)} digests of {len(call.names)} tensors", peer)
        if not all(map(is_digest, answer.digests)):
            raise ProtocolError(f"{peer} gave a digest that is none", peer)


def _bytes(num_bytes: int | None) -> str:
    return "no bytes" if num_bytes is None else f"{num_bytes} bytes"
