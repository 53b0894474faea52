from __future__ import annotations

import pytest

from butterfly.communication import check_hidden, tensor_num_bytes
from butterfly.errors import ProtocolError
from butterfly.messages import Step, TensorHeader
from butterfly.specs import ComputeDType, SequenceStep, StepPlan


def step(hidden: TensorHeader | None) -> Step:
    sequences = tuple(
        SequenceStep(sequence_id=number, start=0, num_tokens=tokens, prompt_length=9)
        for number, tokens in enumerate((2, 1))
    )
    return Step(epoch=1, plan=StepPlan(step_id=5, slot=0, sequences=sequences), hidden=hidden)


@pytest.mark.parametrize(
    ("dtype", "shape", "num_bytes"),
    [
        ("bfloat16", (3, 8), 48),
        ("float16", (3, 8), 48),
        ("float32", (3, 8), 96),
        ("float32", (0, 8), 0),
        ("float32", (), 4),
        ("float32", (-3, -8), -1),
    ],
)
def test_tensor_num_bytes(dtype: ComputeDType, shape: tuple[int, ...], num_bytes: int) -> None:
    assert tensor_num_bytes(TensorHeader(dtype=dtype, shape=shape)) == num_bytes


def test_the_announced_hidden_state_passes() -> None:
    check_hidden(step(TensorHeader(dtype="bfloat16", shape=(3, 8))), (3, 8), "bfloat16", "peer")


@pytest.mark.parametrize(
    "hidden",
    [
        None,
        TensorHeader(dtype="float16", shape=(3, 8)),
        TensorHeader(dtype="bfloat16", shape=(2, 8)),
        TensorHeader(dtype="bfloat16", shape=(3, 9)),
        TensorHeader(dtype="bfloat16", shape=(8, 3)),
        TensorHeader(dtype="bfloat16", shape=(24,)),
    ],
)
def test_anything_else_names_the_sender(hidden: TensorHeader | None) -> None:
    with pytest.raises(ProtocolError, match="peer sent step 5") as caught:
        check_hidden(step(hidden), (3, 8), "bfloat16", "peer")
    assert caught.value.peer == "peer"
