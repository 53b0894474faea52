"""Sizes of tensors on the wire, and the check that a hidden state is the one the plan announces."""

from __future__ import annotations

import math

from butterfly.errors import ProtocolError
from butterfly.messages import Step, TensorHeader
from butterfly.specs import ComputeDType

BYTES_PER_VALUE: dict[ComputeDType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


def tensor_num_bytes(header: TensorHeader) -> int:
    """Return the payload size that the header announces; -1 for a shape that no tensor can have."""
    if any(length < 0 for length in header.shape):
        return -1  # two negative lengths would multiply to a plausible size
    return math.prod(header.shape) * BYTES_PER_VALUE[header.dtype]


def check_hidden(step: Step, shape: tuple[int, int], dtype: ComputeDType, sender: str = "") -> None:
    """Raise ProtocolError naming `sender` unless the step brings a `dtype` tensor of this shape.

    The transport has already checked that the payload has exactly the bytes that the header announces.
    """
    expected = TensorHeader(dtype=dtype, shape=shape)
    if step.hidden is None:
        raise ProtocolError(f"{sender} sent step {step.plan.step_id} without a hidden state", sender)
    if step.hidden != expected:
        raise ProtocolError(
            f"{sender} sent step {step.plan.step_id} with a hidden state of {_describe(step.hidden)}"
            f" where the plan says {_describe(expected)}",
            sender,
        )


def _describe(header: TensorHeader) -> str:
    return f"{header.dtype} {list(header.shape)}"
