from __future__ import annotations

import pytest
from msgspec.structs import replace

from butterfly.errors import ProtocolError
from butterfly.messages import Load, Step, TensorHeader
from butterfly.specs import SequenceStep, StepPlan
from butterfly.worker.checks import check_step
from tests.multiprocess.arithmetic_worker import HIDDEN_SIZE, PRIME
from tests.unit.worker.loads import load_of

FIRST = load_of("w0", embedding=True)
LATER = load_of("w0", embedding=False)
GOOD = SequenceStep(sequence_id=3, start=2, num_tokens=2, prompt_length=4, token_ids=(1, 2))
HIDDEN = TensorHeader(dtype="float32", shape=(2, HIDDEN_SIZE))


def step(sequence: SequenceStep, hidden: TensorHeader | None = None) -> Step:
    return Step(epoch=1, plan=StepPlan(step_id=9, slot=0, sequences=(sequence,)), hidden=hidden)


def test_what_the_plan_says_passes() -> None:
    check_step(step(GOOD), FIRST, "peer")
    check_step(step(replace(GOOD, token_ids=()), HIDDEN), LATER, "peer")
    edge = replace(GOOD, start=FIRST.max_context - 2, token_ids=(0, PRIME - 1))
    check_step(step(edge), FIRST, "peer")


def test_a_step_that_only_releases_passes() -> None:
    release = Step(epoch=1, plan=StepPlan(step_id=9, slot=0, sequences=(), released=(3,)))
    check_step(release, FIRST, "peer")


@pytest.mark.parametrize(
    ("sequence", "problem"),
    [
        (replace(GOOD, num_tokens=0, token_ids=()), "has 0 tokens"),
        (replace(GOOD, start=-1), "from position -1"),
        (replace(GOOD, start=FIRST.max_context - 1), f"context of {FIRST.max_context}"),
        (replace(GOOD, token_ids=(1,)), "has 1 token ids for 2 positions"),
        (replace(GOOD, token_ids=(1, PRIME)), "outside the vocabulary"),
        (replace(GOOD, token_ids=(-1, 1)), "outside the vocabulary"),
    ],
)
def test_a_wrong_sequence_names_the_sender(sequence: SequenceStep, problem: str) -> None:
    with pytest.raises(ProtocolError, match=f"peer sent step 9 where sequence 3 .*{problem}") as caught:
        check_step(step(sequence), FIRST, "peer")
    assert caught.value.peer == "peer"


@pytest.mark.parametrize(
    ("load", "hidden"),
    [(FIRST, HIDDEN), (LATER, None), (LATER, TensorHeader(dtype="float32", shape=(1, HIDDEN_SIZE)))],
    ids=["unwanted", "missing", "too short"],
)
def test_a_wrong_hidden_state_names_the_sender(load: Load, hidden: TensorHeader | None) -> None:
    with pytest.raises(ProtocolError, match="peer sent"):
        check_step(step(GOOD, hidden), load, "peer")
