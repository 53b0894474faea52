"""A request that starts from another's cache, and logprobs: the same bits as when everything is computed at once.

Beginnings have every kind of length: within the prompt of their source and within what it generated, on and off the
borders of the blocks that the cache and the kernels work in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from butterfly.engine.sampling import sample
from butterfly.models import Model, open_model
from butterfly.specs import Adoption, SamplingSpec, SequenceStep, StepPlan, TokenLogprobs
from tests.support.pipelines import LocalPipeline

PROMPT = "Water boils at a lower temperature on a mountain because the air pressure there is lower. " * 4
OTHER = " But in a valley, where it is warm"
SAMPLING = SamplingSpec(seed=11, temperature=0.9)
NUM_GENERATED = 64
LENGTHS = (1, 33, 64, 100, 128, 131)  # of the adopted beginning
NUM_CONTINUED = 3
SOURCE = 1


class Told(NamedTuple):
    """What a sequence generated, and the logits behind it."""

    tokens: list[int]
    logits: torch.Tensor  # [tokens that were computed, vocab]


class Driver:
    """Feeds one pipeline by hand: tokens in, logits of every one of them out."""

    def __init__(self, pipeline: LocalPipeline) -> None:
        self.pipeline = pipeline

    def hidden(self, sequence_id: int, start: int, token_ids: Sequence[int], *adopted: Adoption) -> torch.Tensor:
        sequence = SequenceStep(
            sequence_id=sequence_id,
            start=start,
            num_tokens=len(token_ids),
            prompt_length=start + len(token_ids),
            token_ids=tuple(token_ids),
        )
        return self.pipeline.forward(StepPlan(step_id=0, slot=0, sequences=(sequence,), adopted=adopted))

    def generate(self, sequence_id: int, start: int, token_ids: Sequence[int], count: int, *adopted: Adoption) -> Told:
        """Compute `token_ids` from position `start` on, then `count` more tokens one by one."""
        hidden = [self.hidden(sequence_id, start, token_ids, *adopted)]
        tokens: list[int] = []
        position = start + len(token_ids)
        while True:
            logits = self.pipeline.stages[-1].logits(hidden[-1][-1:])[0].numpy()
            tokens.append(sample(logits, SAMPLING, position))
            if len(tokens) == count:
                return Told(tokens, self.pipeline.stages[-1].logits(torch.cat(hidden)))
            hidden.append(self.hidden(sequence_id, position, tokens[-1:]))
            position += 1

    def release(self, *sequence_ids: int) -> None:
        self.pipeline.run(StepPlan(step_id=0, slot=0, sequences=(), released=sequence_ids))


def adoption(sequence_id: int, num_tokens: int, *, source_id: int = SOURCE, keeps_source: bool = True) -> Adoption:
    return Adoption(sequence_id=sequence_id, source_id=source_id, num_tokens=num_tokens, keeps_source=keeps_source)


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("smollm2", max_context=512)


@pytest.fixture(scope="module")
def pipeline(model: Model) -> LocalPipeline:
    return LocalPipeline(model, [11])


@pytest.fixture(scope="module")
def source_tokens(pipeline: LocalPipeline, model: Model) -> list[int]:
    """Sequence SOURCE has these tokens cached: a prompt, and what was generated one by one."""
    prompt = model.tokenizer.encode(PROMPT)
    assert 64 < len(prompt) < 100  # some LENGTHS are within the prompt, some are not
    told = Driver(pipeline).generate(SOURCE, 0, prompt, NUM_GENERATED)
    return [*prompt, *told.tokens]


def test_a_request_from_an_adopted_beginning_is_the_one_computed_from_scratch(
    pipeline: LocalPipeline, model: Model, source_tokens: list[int]
) -> None:
    driver = Driver(pipeline)
    new = model.tokenizer.encode(OTHER)
    for length in LENGTHS:
        scratch = driver.generate(2, 0, [*source_tokens[:length], *new], NUM_CONTINUED)
        copied = driver.generate(3, length, new, NUM_CONTINUED, adoption(3, length))
        whole = adoption(4, len(source_tokens) - 1)
        taken = driver.generate(
            5, length, new, NUM_CONTINUED, whole, adoption(5, length, source_id=4, keeps_source=False)
        )
        for told in (copied, taken):
            assert told.tokens == scratch.tokens, length
            assert torch.equal(told.logits, scratch.logits[length:]), length
        driver.release(2, 3, 5)


def test_the_source_of_copies_goes_on_unchanged(
    pipeline: LocalPipeline, model: Model, source_tokens: list[int]
) -> None:
    driver = Driver(pipeline)
    cached = len(source_tokens) - 1  # the last token was sampled, not computed
    driver.generate(2, 100, model.tokenizer.encode(OTHER), 2, adoption(2, 100), adoption(3, cached))
    scratch = driver.generate(4, 0, source_tokens, NUM_CONTINUED)
    source = driver.generate(SOURCE, cached, source_tokens[cached:], NUM_CONTINUED)
    copy = driver.generate(3, cached, source_tokens[cached:], NUM_CONTINUED)
    for told in (source, copy):
        assert told.tokens == scratch.tokens
        assert torch.equal(told.logits, scratch.logits[cached:])
    driver.release(SOURCE, 2, 3, 4)


TINY = "hidden=64,layers=4,heads=4,kv_heads=2,ffn=96,vocab=300,context=640"
TINY_MODELS = (
    f"random:llama,{TINY},bits=16",
    f"random:llama,{TINY},bits=8,window=70",
    f"random:qwen3,{TINY},bits=4",
    f"random:gemma3,{TINY},bits=8,window=40",
)


@pytest.mark.parametrize("reference", TINY_MODELS)
def test_hidden_states_of_every_family_do_not_show_where_the_cache_came_from(reference: str) -> None:
    driver = Driver(LocalPipeline(open_model(reference), [1, 3]))
    tokens = [(7 * i * i + 3 * i) % 300 for i in range(600)]
    new = [(11 * i * i + 5) % 300 for i in range(70)]
    driver.hidden(SOURCE, 0, tokens[:300])
    for start in range(300, 330):  # some of it one by one
        driver.hidden(SOURCE, start, tokens[start : start + 1])
    driver.hidden(SOURCE, 330, tokens[330:])
    for length in (1, 2, 31, 64, 65, 127, 128, 300, 315, 511, 512, 513, 570):
        scratch = driver.hidden(2, 0, [*tokens[:length], *new])[length:]
        copied = driver.hidden(3, length, new, adoption(3, length))
        taken = adoption(5, length, source_id=4, keeps_source=False)
        assert torch.equal(copied, scratch), length
        assert torch.equal(driver.hidden(5, length, new, adoption(4, 600), taken), scratch), length
        driver.release(2, 3, 5)


NUM_TOP = 5


def scored(
    pipeline: LocalPipeline, token_ids: Sequence[int], chunk: int, *company: SequenceStep
) -> list[TokenLogprobs]:
    """The logprobs of tokens 1, 2, ... of a prompt that comes in chunks."""
    found: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), chunk):
        part = tuple(token_ids[start : start + chunk])
        sequence = SequenceStep(
            sequence_id=70,
            start=start,
            num_tokens=len(part),
            prompt_length=len(token_ids),
            token_ids=part,
            scored_token_ids=tuple(token_ids[start + 1 : start + chunk + 1]),
            num_scored_top=NUM_TOP,
        )
        released = (70, *(other.sequence_id for other in company))
        step = StepPlan(
            step_id=0, slot=0, sequences=(*company, sequence), released=released if start == 0 else released[1:]
        )
        for scores in pipeline.run(step).scores:
            assert scores.start == start + 1
            found += scores.logprobs
    return found


def test_logprobs_do_not_depend_on_stages_chunks_company_or_on_who_chose_the_token(
    pipeline: LocalPipeline, model: Model
) -> None:
    prompt = tuple(model.tokenizer.encode(PROMPT))[:50]
    sampling = SamplingSpec(
        seed=3, temperature=1.2, presence_penalty=1.0, logit_bias=((40, 2.0),), num_logprobs=NUM_TOP
    )
    tokens = list(prompt)
    sampled: list[TokenLogprobs] = []
    while len(sampled) < 12:
        start = 0 if not sampled else len(tokens) - 1
        part = SequenceStep(
            sequence_id=60,
            start=start,
            num_tokens=len(tokens) - start,
            prompt_length=len(prompt),
            token_ids=tuple(tokens[start:]),
            sampling=sampling,
        )
        (answer,) = pipeline.run(StepPlan(step_id=0, slot=0, sequences=(part,))).samples
        assert answer.logprobs is not None
        assert answer.logprobs.token_id == answer.token_id
        tokens.append(answer.token_id)
        sampled.append(answer.logprobs)

    reference = scored(pipeline, tokens, len(tokens))
    assert reference[len(prompt) - 1 :] == sampled  # the same floats for a token that is known and one that is drawn
    company = SequenceStep(sequence_id=71, start=0, num_tokens=9, prompt_length=9, token_ids=tuple(tokens[:9]))
    assert scored(pipeline, tokens, 7, company) == reference
    assert scored(LocalPipeline(model), tokens, 40) == reference
    logprobs = torch.log_softmax(pipeline.logits(tokens).double(), dim=-1)
    for row, known in enumerate(reference):
        assert known.token_id == tokens[row + 1]
        assert known.logprob == pytest.approx(logprobs[row, known.token_id].item(), abs=1e-9)
        assert [lp for _, lp in known.top] == pytest.approx(logprobs[row].topk(NUM_TOP).values.tolist(), abs=1e-9)
        assert dict(known.top).get(known.token_id, known.logprob) == known.logprob
