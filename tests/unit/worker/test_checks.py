from __future__ import annotations

import zlib

import pytest
from msgspec.structs import replace

from butterfly.errors import ProtocolError
from butterfly.messages import Load, Step, TensorHeader
from butterfly.specs import Adoption, LayerRange, SamplingContext, SamplingSpec, SequenceStep, StepPlan
from butterfly.worker.checks import check_step
from tests.multiprocess.arithmetic_worker import HIDDEN_SIZE, PRIME, model
from tests.unit.worker.loads import load_of

FIRST = load_of("w0", embedding=True)
LATER = load_of("w0", embedding=False)
MIDDLE = load_of("w0", embedding=False, head=False)
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


def refilling(start: int, end: int, num_rows: int, sequence: SequenceStep = GOOD) -> Step:
    plan = StepPlan(step_id=9, slot=0, sequences=(sequence,), refill=LayerRange(start=start, end=end))
    return Step(epoch=1, plan=plan, hidden=TensorHeader(dtype="float32", shape=(num_rows, HIDDEN_SIZE)))


def later(start: int) -> Load:
    return replace(LATER, model=model(8), stage=replace(LATER.stage, start=start, end=8))


@pytest.mark.parametrize(("first_layer", "num_rows"), [(2, 0), (3, 2), (5, 2), (6, 0), (7, 0)])
def test_hidden_states_cross_the_borders_of_the_layers_that_are_refilled_and_no_others(
    first_layer: int, num_rows: int
) -> None:
    check_step(refilling(3, 6, num_rows), later(first_layer), "peer")
    with pytest.raises(ProtocolError, match="hidden state"):
        check_step(refilling(3, 6, 2 - num_rows), later(first_layer), "peer")


@pytest.mark.parametrize(("start", "end"), [(3, 3), (-1, 2), (4, 9)])
def test_layers_that_are_not_there_cannot_be_refilled(start: int, end: int) -> None:
    with pytest.raises(ProtocolError, match=f"peer sent step 9, which refills layers {start}:{end} of 8"):
        check_step(refilling(start, end, 2), later(4), "peer")


def test_a_refill_asks_for_no_tokens() -> None:
    with pytest.raises(ProtocolError, match="refills, and asks for tokens"):
        check_step(refilling(3, 6, 2, asking()), later(4), "peer")


def asking(sampling: SamplingSpec | None = None, context: SamplingContext | None = None) -> SequenceStep:
    return replace(GOOD, sampling=sampling or SamplingSpec(), context=context)


def deflated(num_bytes: int) -> bytes:
    return zlib.compress(bytes([255]) * num_bytes)


MASK_BYTES = -(-PRIME // 8)
EVERYTHING = asking(
    SamplingSpec(temperature=0, top_k=5, logit_bias=((0, -100.0), (PRIME - 1, 100.0)), num_logprobs=20),
    SamplingContext(
        output_counts=((0, 1), (PRIME - 1, FIRST.max_context)),
        prompt_token_ids=(0, PRIME - 1),
        banned_token_ids=(0, PRIME - 1),
        mask=deflated(MASK_BYTES),
    ),
)


def test_everything_that_may_be_asked_passes() -> None:
    check_step(step(EVERYTHING), FIRST, "peer")
    check_step(step(replace(GOOD, scored_token_ids=(0, PRIME - 1), num_scored_top=100)), FIRST, "peer")
    check_step(step(asking(context=SamplingContext(mask=deflated(1)))), FIRST, "peer")


@pytest.mark.parametrize(
    ("sequence", "problem"),
    [
        (replace(GOOD, scored_token_ids=(1, 2, 3)), "scores 3 tokens after 2 positions"),
        (replace(GOOD, scored_token_ids=(PRIME,)), "scores token ids outside the vocabulary"),
        (replace(GOOD, scored_token_ids=(1,), num_scored_top=101), "wants 101 top logprobs, of 100 at most"),
        (replace(GOOD, scored_token_ids=(1,), num_scored_top=-1), "wants -1 top logprobs"),
        (replace(GOOD, context=SamplingContext()), "has a sampling context but samples nothing"),
        (asking(SamplingSpec(temperature=float("nan"))), "samples with temperature nan"),
        (asking(SamplingSpec(temperature=-1.0)), "samples with temperature -1.0"),
        (asking(SamplingSpec(top_k=-1)), "samples with top_k -1"),
        (asking(SamplingSpec(min_p=1.1)), "samples with min_p 1.1"),
        (asking(SamplingSpec(presence_penalty=float("inf"))), "samples with presence_penalty inf"),
        (asking(SamplingSpec(repetition_penalty=0.0)), "samples with repetition_penalty 0.0"),
        (asking(SamplingSpec(logit_bias=((PRIME, 1.0),))), "has a logit_bias for token ids outside"),
        (asking(SamplingSpec(logit_bias=((1, float("inf")),))), "has a logit_bias that is not a finite number"),
        (asking(SamplingSpec(num_logprobs=101)), "wants 101 top logprobs"),
        (asking(context=SamplingContext(output_counts=((PRIME, 1),))), "has output_counts outside"),
        (asking(context=SamplingContext(output_counts=((1, 0),))), "has output_counts that are not from 1 to 64"),
        (asking(context=SamplingContext(prompt_token_ids=(-1,))), "has prompt_token_ids outside"),
        (asking(context=SamplingContext(banned_token_ids=(PRIME,))), "has banned_token_ids outside"),
        (asking(context=SamplingContext(mask=b"garbage")), "has a token mask that does not inflate"),
        (asking(context=SamplingContext(mask=deflated(MASK_BYTES)[:-1])), "has a token mask"),
        (asking(context=SamplingContext(mask=deflated(MASK_BYTES) + b"x")), "has a token mask"),
        (asking(context=SamplingContext(mask=deflated(1 << 24))), f"inflate to at most {MASK_BYTES} bytes"),
    ],
)
def test_what_no_head_can_do_names_the_sender(sequence: SequenceStep, problem: str) -> None:
    with pytest.raises(ProtocolError, match=f"peer sent step 9 where sequence 3 .*{problem}") as caught:
        check_step(step(sequence), FIRST, "peer")
    assert caught.value.peer == "peer"
    check_step(step(replace(sequence, token_ids=()), HIDDEN), MIDDLE, "peer")  # handed on, not used here


@pytest.mark.parametrize(
    ("adoption", "problem"),
    [
        (Adoption(sequence_id=3, source_id=3, num_tokens=1, keeps_source=True), "adopts its own cache"),
        (Adoption(sequence_id=3, source_id=1, num_tokens=0, keeps_source=True), "adopts 0 tokens"),
        (
            Adoption(sequence_id=3, source_id=1, num_tokens=65, keeps_source=False),
            "adopts 65 tokens of a context of 64",
        ),
    ],
)
def test_a_wrong_adoption_names_the_sender(adoption: Adoption, problem: str) -> None:
    plan = StepPlan(step_id=9, slot=0, sequences=(), adopted=(adoption,))
    with pytest.raises(ProtocolError, match=f"peer sent step 9 where sequence 3 {problem}") as caught:
        check_step(Step(epoch=1, plan=plan), FIRST, "peer")
    assert caught.value.peer == "peer"


@pytest.mark.parametrize(
    ("load", "hidden"),
    [(FIRST, HIDDEN), (LATER, None), (LATER, TensorHeader(dtype="float32", shape=(1, HIDDEN_SIZE)))],
    ids=["unwanted", "missing", "too short"],
)
def test_a_wrong_hidden_state_names_the_sender(load: Load, hidden: TensorHeader | None) -> None:
    with pytest.raises(ProtocolError, match="peer sent"):
        check_step(step(GOOD, hidden), load, "peer")
