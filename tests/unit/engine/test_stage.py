"""A stage's contract with its worker, on tiny random models."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from butterfly.engine import Answer
from butterfly.engine.logprobs import token_logprobs
from butterfly.errors import ProtocolError
from butterfly.models import Model, open_model
from butterfly.specs import Adoption, SamplingContext, SamplingSpec, SequenceStep, StepPlan
from tests.support.pipelines import LocalPipeline

PROMPT = tuple(range(30, 130))
GREEDY = SamplingSpec(temperature=0)


@pytest.fixture(scope="module", params=[8, 16], ids=["packed head", "dense head"])
def model(request: pytest.FixtureRequest) -> Model:
    return open_model(f"random:llama,hidden=64,layers=3,heads=4,kv_heads=2,vocab=300,context=256,bits={request.param}")


@pytest.fixture
def pipeline(model: Model) -> LocalPipeline:
    return LocalPipeline(model, [1, 2])


def part(sequence_id: int, start: int, token_ids: tuple[int, ...], **changes: object) -> SequenceStep:
    sequence = SequenceStep(
        sequence_id=sequence_id, start=start, num_tokens=len(token_ids), prompt_length=len(PROMPT), token_ids=token_ids
    )
    return replace(sequence, **changes)


def step(*sequences: SequenceStep, released: tuple[int, ...] = (), adopted: tuple[Adoption, ...] = ()) -> StepPlan:
    return StepPlan(step_id=7, slot=0, sequences=sequences, released=released, adopted=adopted)


def test_a_step_without_tokens_drops_and_adopts_in_order(pipeline: LocalPipeline) -> None:
    pipeline.run(step(part(1, 0, PROMPT), part(2, 0, PROMPT[:5])))
    per_token = pipeline.stages[0].kv_used_bytes // 105
    copy = Adoption(sequence_id=2, source_id=1, num_tokens=60, keeps_source=True)  # 2 is free again by then
    take = Adoption(sequence_id=3, source_id=2, num_tokens=40, keeps_source=False)
    assert pipeline.run(step(released=(2,), adopted=(copy, take))) == Answer((), ())
    assert {stage.kv_used_bytes for stage in pipeline.stages} == {140 * per_token}
    hidden = pipeline.forward(step(part(3, 40, PROMPT[40:])))
    expected = pipeline.forward(step(part(4, 0, PROMPT)))
    assert torch.equal(hidden, expected[40:])


def test_an_adoption_that_no_cache_allows_is_refused(pipeline: LocalPipeline) -> None:
    with pytest.raises(ProtocolError, match="sequence 2 would start with 1 tokens of sequence 1"):
        pipeline.run(step(adopted=(Adoption(sequence_id=2, source_id=1, num_tokens=1, keeps_source=True),)))


def test_scores_are_the_logprobs_of_every_row(pipeline: LocalPipeline) -> None:
    """More rows than are computed at once; beside others that score nothing, a part, or sample too."""
    scored = part(1, 0, PROMPT, scored_token_ids=PROMPT[1:], num_scored_top=3, sampling=GREEDY)
    some = part(3, 0, PROMPT[:7], scored_token_ids=(9, 8))
    answer = pipeline.run(step(part(2, 0, PROMPT[:9], sampling=GREEDY), scored, some))
    logits = pipeline.logits(PROMPT).numpy()
    expected = tuple(token_logprobs(row, token_id, 3) for row, token_id in zip(logits[:-1], PROMPT[1:], strict=True))
    assert [(scores.sequence_id, scores.start, len(scores.logprobs)) for scores in answer.scores] == [
        (1, 1, 99),
        (3, 1, 2),
    ]
    assert answer.scores[0].logprobs == expected
    assert answer.scores[1].logprobs == tuple(token_logprobs(logits[row], (9, 8)[row], 0) for row in range(2))
    assert [sample.sequence_id for sample in answer.samples] == [2, 1]
    assert answer.samples[1].token_id == int(logits[-1].argmax())


def test_a_chunk_scores_from_its_own_start(pipeline: LocalPipeline) -> None:
    pipeline.run(step(part(1, 0, PROMPT[:40])))
    answer = pipeline.run(step(part(1, 40, PROMPT[40:60], scored_token_ids=PROMPT[41:61])))
    logits = pipeline.logits(PROMPT).numpy()
    assert answer.scores[0].start == 41
    assert answer.scores[0].logprobs == tuple(token_logprobs(logits[row], PROMPT[row + 1], 0) for row in range(40, 60))


def test_logprobs_of_a_sample_are_those_of_the_model_whatever_was_asked(pipeline: LocalPipeline) -> None:
    mask = np.zeros(304, np.bool_)
    mask[[5, 6, 7]] = True
    sampling = SamplingSpec(seed=1, temperature=0.1, logit_bias=((6, 90.0),), num_logprobs=4)
    context = SamplingContext(mask=zlib.compress(np.packbits(mask, bitorder="little").tobytes()), banned_token_ids=(7,))
    (sample,) = pipeline.run(step(part(1, 0, PROMPT, sampling=sampling, context=context))).samples
    assert (sample.token_id, sample.position) == (6, 100)
    assert sample.logprobs == token_logprobs(pipeline.logits(PROMPT)[-1].numpy(), 6, 4)
    plain = replace(GREEDY, num_logprobs=1)
    (likeliest,) = pipeline.run(step(part(2, 0, PROMPT, sampling=plain))).samples
    assert likeliest.logprobs is not None
    assert likeliest.logprobs.top == ((likeliest.token_id, likeliest.logprobs.logprob),)
