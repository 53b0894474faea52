"""Hidden states by sequence: what was written is read, released with the sequence, and cut to what is kept."""

from __future__ import annotations

import pytest
import torch

from butterfly.engine.border import Border
from butterfly.errors import ProtocolError
from butterfly.specs import Adoption, KeptSequence, SequenceStep, StepPlan

WIDTH = 4


def step(*parts: tuple[int, int, int]) -> StepPlan:
    """Of (sequence id, start, tokens)."""
    sequences = tuple(
        SequenceStep(sequence_id=name, start=start, num_tokens=count, prompt_length=1) for name, start, count in parts
    )
    return StepPlan(step_id=1, slot=0, sequences=sequences)


def rows(first: int, count: int) -> torch.Tensor:
    return torch.arange(first * WIDTH, (first + count) * WIDTH, dtype=torch.float32).view(count, WIDTH)


@pytest.fixture
def border() -> Border:
    """Sequence 1 has 103 rows, written in three pieces, and sequence 2 has 2."""
    border = Border(WIDTH, torch.float32, torch.device("cpu"))
    border.write(step((1, 0, 100), (2, 0, 2)), torch.cat([rows(0, 100), rows(500, 2)]))
    border.write(step((1, 100, 2)), rows(100, 2))
    border.write(step((1, 102, 1)), rows(102, 1))
    return border


def test_what_was_written_is_read_in_any_pieces(border: Border) -> None:
    assert torch.equal(border.read(step((1, 0, 103))), rows(0, 103))
    assert torch.equal(border.read(step((2, 1, 1), (1, 98, 4))), torch.cat([rows(501, 1), rows(98, 4)]))


@pytest.mark.parametrize("part", [(1, 100, 4), (3, 0, 1)])
def test_what_was_never_written_is_an_error(border: Border, part: tuple[int, int, int]) -> None:
    with pytest.raises(ProtocolError, match=f"sequence {part[0]}"):
        border.read(step(part))


@pytest.mark.parametrize("keeps_source", [True, False])
def test_an_adopted_beginning_is_its_own(border: Border, keeps_source: bool) -> None:
    border.adopt(Adoption(sequence_id=7, source_id=1, num_tokens=50, keeps_source=keeps_source))
    border.write(step((7, 50, 1)), rows(900, 1))
    assert torch.equal(border.read(step((7, 48, 3))), torch.cat([rows(48, 2), rows(900, 1)]))
    if keeps_source:
        assert torch.equal(border.read(step((1, 50, 1))), rows(50, 1))
    else:
        with pytest.raises(ProtocolError):
            border.read(step((1, 0, 1)))


def test_keeping_forgets_others_and_what_came_later(border: Border) -> None:
    border.keep([KeptSequence(sequence_id=1, num_tokens=101)])
    assert torch.equal(border.read(step((1, 90, 11))), rows(90, 11))
    for part in ((1, 101, 1), (2, 0, 1)):
        with pytest.raises(ProtocolError):
            border.read(step(part))


def test_released_is_gone(border: Border) -> None:
    border.release(1)
    border.release(99)
    with pytest.raises(ProtocolError):
        border.read(step((1, 0, 1)))
