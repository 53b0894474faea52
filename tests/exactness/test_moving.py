"""Stages that take over layers from the stages before them answer as if they had been loaded anew."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from butterfly.engine import Loading, Stage
from butterfly.models import Model, open_model, stage_tensors
from butterfly.specs import Request, SamplingSpec, StagePlan
from tests.support.pipelines import LocalPipeline

PROMPTS = [tuple(range(40, 40 + length)) for length in (3, 70, 130)]


def move(pipeline: LocalPipeline, boundaries: list[int]) -> None:
    """Let each stage become the one at its place in a pipeline that is cut elsewhere."""
    model = pipeline.model
    edges = [0, *boundaries, model.spec.num_layers]
    for place, (start, end) in enumerate(pairwise(edges)):
        before = pipeline.stages[place]
        plan = StagePlan(
            worker=before.plan.worker,
            start=start,
            end=end,
            embedding=start == 0,
            head=end == model.spec.num_layers,
            weight_bytes=0,
            kv_bytes=0,
            predicted_compute_s=0.0,
        )
        tensors = stage_tensors(model, start, end, embedding=plan.embedding, head=plan.head)
        loading = Loading(previous=before)
        pipeline.stages[place] = Stage(
            model.spec, plan, tensors, device=torch.device("cpu"), dtype="bfloat16", loading=loading
        )
    del pipeline.stages[len(edges) - 1 :]


def answers(pipeline: LocalPipeline) -> dict[str, tuple[int, ...]]:
    return pipeline.generate(
        [
            Request(
                request_id=f"r{number}",
                prompt_token_ids=prompt,
                max_tokens=12,
                sampling=SamplingSpec(seed=number, temperature=0.8),
            )
            for number, prompt in enumerate(PROMPTS)
        ]
    )


@pytest.fixture(params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> Model:
    return open_model(f"random:{request.param},hidden=64,layers=6,heads=4,kv_heads=2,vocab=300,context=256,bits=4")


def test_every_cut_of_a_pipeline_that_moves_gives_the_same_answers(model: Model) -> None:
    pipeline = LocalPipeline(model, [2, 4])
    expected = answers(LocalPipeline(model))
    for boundaries in ([2, 4], [1, 5], [3, 4], [4], [2]):
        move(pipeline, boundaries)
        assert answers(pipeline) == expected
