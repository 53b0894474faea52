"""A lost stage is computed again from the border before it, and nobody can tell from the tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
import torch

from butterfly.coordinator.refill import Standing
from butterfly.engine import Answer, Loading, Stage
from butterfly.models import Model, open_model, stage_tensors
from butterfly.scheduling import Scheduler
from butterfly.specs import KeptSequence, LayerRange, Plan, Request, SamplingSpec, StagePlan, StepPlan, StepResult
from tests.support.pipelines import LocalPipeline, scheduler_config

PROMPTS = [tuple(range(40, 40 + length)) for length in (3, 70, 130)]
MAX_TOKENS = 30

Cuts = tuple[tuple[str, int, int], ...]
"""(worker, first layer, end) of each stage"""

BEFORE: Cuts = (("a", 0, 2), ("b", 2, 4), ("c", 4, 6))
MOVES: dict[str, tuple[Cuts, LayerRange | None]] = {
    "a spare takes the middle": ((("a", 0, 2), ("spare", 2, 4), ("c", 4, 6)), LayerRange(start=2, end=4)),
    "a spare takes the beginning": ((("spare", 0, 2), ("b", 2, 4), ("c", 4, 6)), LayerRange(start=0, end=2)),
    "a spare takes the end": ((("a", 0, 2), ("b", 2, 4), ("spare", 4, 6)), LayerRange(start=4, end=6)),
    "neighbours share the middle": ((("a", 0, 3), ("c", 3, 6)), LayerRange(start=2, end=4)),
    "the last is lost": ((("a", 0, 3), ("b", 3, 6)), LayerRange(start=2, end=6)),
    "the first is lost": ((("b", 0, 3), ("c", 3, 6)), LayerRange(start=0, end=4)),
    "two are lost": ((("a", 0, 6),), LayerRange(start=2, end=6)),
    "one joins beside": ((("a", 0, 2), ("b", 2, 3), ("spare", 3, 4), ("c", 4, 6)), LayerRange(start=2, end=4)),
    "inside of four": ((("a", 0, 2), ("spare", 2, 3), ("b", 3, 4), ("c", 4, 6)), LayerRange(start=2, end=3)),
    "everybody else": ((("x", 0, 3), ("y", 3, 6)), None),
    "places are changed": ((("c", 0, 2), ("a", 2, 4), ("b", 4, 6)), None),
}


def plan_of(model: Model, cuts: Cuts) -> Plan:
    stages = tuple(
        StagePlan(
            worker=worker,
            start=start,
            end=end,
            embedding=start == 0,
            head=end == model.spec.num_layers,
            weight_bytes=0,
            kv_bytes=0,
            predicted_compute_s=0.0,
        )
        for worker, start, end in cuts
    )
    return Plan(stages=stages, predicted_tpot_s=1, bound_tpot_s=1, binding="", kv_capacity_tokens=1, cost_s=1)


class Cluster:
    """Stages by worker, in this process."""

    def __init__(self, model: Model, cuts: Cuts) -> None:
        self.model = model
        self.stages: dict[str, Stage] = {}  # of all that ever had one
        self.load(cuts, (), frozenset())

    def load(self, cuts: Cuts, kept: Sequence[KeptSequence], standing: Collection[str]) -> None:
        self.plan = plan_of(self.model, cuts)
        before = dict(self.stages)
        for stage in self.plan.stages:
            tensors = stage_tensors(self.model, stage.start, stage.end, embedding=stage.embedding, head=stage.head)
            keeps = bool(kept) and stage.worker in standing
            loading = Loading(previous=before.get(stage.worker), kept=kept, keeps_cache=keeps)
            self.stages[stage.worker] = Stage(
                self.model.spec, stage, tensors, device=torch.device("cpu"), dtype="bfloat16", loading=loading
            )

    def result(self, step: StepPlan) -> StepResult:
        """Run a step as workers would: what crosses a border has as many rows as the next stage expects."""
        hidden: torch.Tensor | None = None
        for place in self.plan.stages:
            if hidden is not None:
                is_needed = step.refill is None or step.refill.enters(place.start)
                assert hidden.shape == (step.num_tokens if is_needed else 0, self.model.spec.hidden_size)
            output = self.stages[place.worker].run(step, hidden)
            if isinstance(output, Answer):
                return StepResult(step_id=step.step_id, samples=output.samples, scores=output.scores)
            hidden = output
        raise AssertionError("no stage had the head")


def requests() -> list[Request]:
    return [
        Request(
            request_id=f"r{number}",
            prompt_token_ids=prompt,
            max_tokens=MAX_TOKENS,
            sampling=SamplingSpec(seed=number, temperature=0.8),
        )
        for number, prompt in enumerate(PROMPTS)
    ]


class Run:
    """Requests on a cluster whose stages change on the way."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.config = scheduler_config(cluster.model)
        self.standing = Standing()
        self.standing.serve(cluster.plan)
        self.scheduler = Scheduler(self.config)
        self.tokens: dict[str, list[int]] = {}
        self.steps: list[StepPlan] = []
        for request in requests():
            self.scheduler.add(request, 0.0)
            self.tokens[request.request_id] = []

    def until(self, num_tokens: int) -> None:
        """Until the last of the requests has so many tokens, or all have ended."""
        while min(map(len, self.tokens.values())) < num_tokens:
            step = self.scheduler.schedule()
            assert step is not None
            self.steps.append(step)
            for output in self.scheduler.update(self.cluster.result(step)):
                self.tokens[output.request_id] += output.token_ids
            self.scheduler.check_integrity()

    def move(self, after: Cuts) -> LayerRange | None:
        """Lose a step that is under way, and go on under another plan."""
        if (lost := self.scheduler.schedule()) is not None:
            first = next(iter(self.cluster.plan.stages))
            self.cluster.stages[first.worker].run(lost)  # some stage may have computed it already
        self.scheduler.hold()
        self.scheduler.check_integrity()
        for stage in self.cluster.plan.stages:
            if stage.worker not in {worker for worker, _, _ in after}:
                self.standing.forget(stage.worker)
        kept = self.standing.move(plan_of(self.cluster.model, after))
        sequences = self.scheduler.kept_for(self.config) if kept.refill else ()
        self.cluster.load(after, sequences, kept.workers)
        assert self.scheduler.resume(self.config, kept.refill if sequences else None) == []
        self.standing.serve(self.cluster.plan)
        self.scheduler.check_integrity()
        self.steps.clear()
        return kept.refill


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> Model:
    return open_model(f"random:{request.param},hidden=64,layers=6,heads=4,kv_heads=2,vocab=300,context=256,bits=4")


@pytest.fixture(scope="module")
def expected(model: Model) -> dict[str, list[int]]:
    return {name: list(ids) for name, ids in LocalPipeline(model).generate(requests()).items()}


@pytest.mark.parametrize(("after", "refill"), MOVES.values(), ids=MOVES.keys())
def test_every_move_gives_the_same_tokens(
    model: Model, expected: dict[str, list[int]], after: Cuts, refill: LayerRange | None
) -> None:
    run = Run(Cluster(model, BEFORE))
    run.until(5)
    cached = {part.sequence_id for step in run.steps for part in step.sequences}
    assert run.move(after) == refill
    run.until(MAX_TOKENS)
    assert run.tokens == expected
    refills = [step for step in run.steps if step.refill is not None]
    assert bool(refills) == (refill is not None)
    if refill is not None:
        again = {part.sequence_id for step in run.steps for part in step.sequences}
        assert again == cached, "sequences go on as who they were"
        assert not any(part.start == 0 for step in run.steps if step.refill is None for part in step.sequences)


def test_one_move_after_the_other_gives_the_same_tokens(model: Model, expected: dict[str, list[int]]) -> None:
    """What the first move computed is what the next one begins with; one comes before the first is over."""
    run = Run(Cluster(model, BEFORE))
    run.until(4)
    assert run.move((("a", 0, 3), ("c", 3, 6))) is not None
    run.until(8)
    assert run.move((("a", 0, 3), ("b", 3, 6))) == LayerRange(start=3, end=6)
    run.until(12)
    assert run.move((("a", 0, 2), ("d", 2, 4), ("b", 4, 6))) is not None
    run.until(14)
    assert run.move((("a", 0, 3), ("b", 3, 6))) is not None
    while not any(step.refill for step in run.steps):
        run.until(min(map(len, run.tokens.values())) + 1)
    assert run.move((("c", 0, 3), ("b", 3, 6))) is not None
    run.until(MAX_TOKENS)
    assert run.tokens == expected


def test_a_move_in_the_middle_of_refilling_gives_the_same_tokens(model: Model, expected: dict[str, list[int]]) -> None:
    run = Run(Cluster(model, BEFORE))
    run.until(5)
    run.move((("a", 0, 2), ("d", 2, 4), ("c", 4, 6)))
    step = run.scheduler.schedule()
    assert step is not None
    assert step.refill is not None
    run.scheduler.update(run.cluster.result(step))
    assert run.move((("a", 0, 2), ("e", 2, 4), ("c", 4, 6))) == LayerRange(start=2, end=4)
    run.until(MAX_TOKENS)
    assert run.tokens == expected


def test_who_was_left_out_for_a_while_comes_back_with_an_old_cache_that_nobody_uses(
    model: Model, expected: dict[str, list[int]]
) -> None:
    """It has layers, and these sequences, but not as far as they have come since."""
    run = Run(Cluster(model, BEFORE))
    run.until(5)
    assert run.move((("a", 0, 2), ("d", 2, 4), ("c", 4, 6))) == LayerRange(start=2, end=4)
    run.until(15)
    assert run.move((("a", 0, 2), ("b", 2, 4), ("c", 4, 6))) == LayerRange(start=2, end=4)
    run.until(MAX_TOKENS)
    assert run.tokens == expected
