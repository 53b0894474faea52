"""The overlapped loop beside the plain one: the same tokens, bit for bit, in the worst of company.

The plain loop runs every request alone, one step in flight, nothing reused. The overlapped one runs them together
with several steps in flight, in a KV cache so small that requests are preempted, with beginnings taken over and
copied from others, while some of the others are aborted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import pytest

from butterfly.models import Model, open_model
from butterfly.scheduling import Scheduler, SchedulerConfig
from butterfly.specs import Request, RequestOutput, SamplingContext, SamplingSpec, StepPlan, StepResult
from tests.support.pipelines import LocalPipeline, even_boundaries

SYSTEM = "You are a patient teacher who answers in one short sentence. The student asks: "
QUESTIONS = (
    "Why is the sky blue?",
    "How many legs does a spider have?",
    "What is the capital of France? Name the river too.",
    "Who wrote Hamlet?",
    "What is heavier, a kilogram of feathers or a kilogram of iron? Explain it step by step, please, as to a child.",
    "Name a prime number.",
)
WAYS = (
    SamplingSpec(temperature=0.0),
    SamplingSpec(seed=7, temperature=1.0),
    SamplingSpec(seed=8, temperature=0.8, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.5),
)
NUM_TOKENS = 24
BLOCK = 16  # tokens


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("smollm2", max_context=512)


@pytest.fixture(scope="module")
def requests(model: Model) -> list[Request]:
    found = []
    for number, question in enumerate(QUESTIONS):
        ids = tuple(model.tokenizer.encode(SYSTEM + question))
        for way, sampling in enumerate(WAYS):
            found.append(
                Request(
                    request_id=f"{number}-{way}",
                    prompt_token_ids=ids,
                    max_tokens=NUM_TOKENS,
                    sampling=sampling,
                    priority=way,
                    tenant=str(number % 2),
                )
            )
    return found


@pytest.fixture(scope="module")
def pipeline(model: Model) -> LocalPipeline:
    return LocalPipeline(model, even_boundaries(model.spec.num_layers, 3))


def config(**changes: object) -> SchedulerConfig:
    settings: dict[str, object] = {
        "num_slots": 3,
        "num_spare_slots": 1,
        "max_num_sequences": 12,
        "kv_capacity_tokens": 400,  # all of them together would take some 900
        "block_size": BLOCK,
        "max_context": 512,
        "max_waiting_tokens": 1 << 20,
        "max_num_batched_tokens": 16,
        **changes,
    }
    return SchedulerConfig(**settings)  # type: ignore[arg-type]


class Run:
    """Steps are computed in the order in which they are sent; their results come back late, when it pleases us."""

    def __init__(self, pipeline: LocalPipeline, settings: SchedulerConfig, seed: int = 0) -> None:
        self.pipeline, self.scheduler = pipeline, Scheduler(settings)
        self.random = random.Random(seed)
        self.in_flight: deque[StepResult] = deque()
        self.tokens: dict[str, list[int]] = {}
        self.plans: list[StepPlan] = []
        self.most_in_flight = 0

    def add(self, request: Request) -> None:
        self.tokens[request.request_id] = []
        self.scheduler.add(request, 0.0)

    def advance(self) -> None:
        """Send a step or take in a result, by chance."""
        if not self.in_flight or self.random.random() < 0.6:
            plan = self.scheduler.schedule()
            if plan is not None:
                self.plans.append(plan)
                self.in_flight.append(self.pipeline.result(plan))
                self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
                return
        if self.in_flight:
            self.take(self.scheduler.update(self.in_flight.popleft()))

    def take(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            self.tokens[output.request_id] += output.token_ids

    def finish(self) -> dict[str, list[int]]:
        while self.scheduler.has_unfinished or self.in_flight:
            self.advance()
        self.scheduler.check_integrity()
        assert self.scheduler.counts.used_tokens == 0
        return self.tokens

    def close(self) -> None:
        """Let the stages drop what is kept: others use them too."""
        self.scheduler.requeue_all()
        plan = self.scheduler.schedule()
        if plan is not None:
            self.pipeline.run(plan)
        assert not any(stage.kv_used_bytes for stage in self.pipeline.stages)


@pytest.fixture(scope="module")
def plain(pipeline: LocalPipeline, requests: list[Request]) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    for request in requests:
        settings = config(num_slots=1, num_spare_slots=0, kv_capacity_tokens=512, prefix_reuse="off")
        run = Run(pipeline, settings)
        run.add(request)
        tokens |= run.finish()
        run.close()
    return tokens


@pytest.mark.parametrize("seed", [1, 2])
def test_under_load_preemption_reuse_and_aborts_the_tokens_are_those_of_the_plain_loop(
    pipeline: LocalPipeline, requests: list[Request], plain: dict[str, list[int]], seed: int
) -> None:
    run = Run(pipeline, config(), seed)
    order = run.random.sample(requests, len(requests))
    doomed = {request.request_id for request in order[::5]}
    for request in order:
        run.add(request)
        for _ in range(run.random.randrange(6)):
            run.advance()
    for request_id in sorted(doomed):
        for _ in range(run.random.randrange(12)):
            run.advance()
        run.scheduler.abort(request_id)
    tokens = run.finish()
    run.close()
    assert run.scheduler.counts.num_preemptions > 0
    assert run.most_in_flight >= 3
    adopted = [adoption.keeps_source for plan in run.plans for adoption in plan.adopted]
    assert {True, False} == set(adopted), "both ways of reuse must have happened"
    for name, expected in plain.items():
        if name in doomed:
            assert tokens[name] == expected[: len(tokens[name])]
        else:
            assert tokens[name] == expected, name


def test_a_conversation_of_ten_turns_prefills_only_what_is_new(pipeline: LocalPipeline, model: Model) -> None:
    """Each turn's prompt is the whole history; every turn answers as it would from scratch."""
    others = LocalPipeline(model)
    together = Run(pipeline, config(kv_capacity_tokens=512, max_num_batched_tokens=512))
    history = list(model.tokenizer.encode("A talk about numbers. Hello!"))
    num_new = len(history)
    for turn in range(10):
        request = Request(
            request_id=f"turn {turn}",
            prompt_token_ids=tuple(history),
            max_tokens=8,
            sampling=SamplingSpec(seed=turn, temperature=1.0),
        )
        first_plan = len(together.plans)
        together.add(request)
        answer = together.finish()[request.request_id]
        alone = Run(others, config(num_slots=1, num_spare_slots=0, prefix_reuse="off", kv_capacity_tokens=512))
        alone.add(request)
        assert answer == alone.finish()[request.request_id]
        alone.close()
        prefilled = sum(
            sequence.num_tokens
            for plan in together.plans[first_plan:]
            for sequence in plan.sequences
            if sequence.start < len(history)
        )
        new = model.tokenizer.encode(f" And what comes after {turn}?")
        assert num_new <= prefilled < num_new + BLOCK, "what is new, and less than one block"
        history += answer + new
        num_new = len(new)
    together.close()


def test_a_context_travels_only_with_what_is_sampled(pipeline: LocalPipeline, requests: list[Request]) -> None:
    run = Run(pipeline, config(kv_capacity_tokens=2048))
    for request in requests[:3]:
        run.add(request)
    run.finish()
    run.close()
    contexts = [sequence.context for plan in run.plans for sequence in plan.sequences if sequence.sampling is None]
    assert set(contexts) == {None}
    assert any(isinstance(s.context, SamplingContext) for plan in run.plans for s in plan.sequences)
