"""The same forward pass on a CUDA device: close to the CPU's, not equal bit for bit."""

from __future__ import annotations

import pytest
import torch

from butterfly.engine import Stage
from butterfly.models import open_model, stage_tensors
from butterfly.specs import SequenceStep, StagePlan, StepPlan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_logits_on_a_gpu_are_those_of_the_cpu(family: str) -> None:
    reference = f"random:{family},hidden=64,layers=4,heads=4,kv_heads=2,ffn=96,vocab=300,bits=8"
    model = open_model(reference, dtype="float32")
    plan = StagePlan(
        worker="w",
        start=0,
        end=model.spec.num_layers,
        embedding=True,
        head=True,
        weight_bytes=0,
        kv_bytes=0,
        predicted_compute_s=0.0,
    )
    tensors = stage_tensors(model, plan.start, plan.end, embedding=True, head=True)
    prompt = tuple(range(40, 240))
    logits = []
    for device in ("cpu", "cuda:0"):
        stage = Stage(model.spec, plan, tensors, device=torch.device(device), dtype="float32")
        for start, end in ((0, 150), (150, 199), (199, 200)):  # also lets a slab grow
            sequence = SequenceStep(
                sequence_id=1, start=start, num_tokens=end - start, prompt_length=200, token_ids=prompt[start:end]
            )
            hidden = stage.forward(StepPlan(step_id=1, slot=0, sequences=(sequence,)))
        logits.append(stage.logits(hidden[-1:]).cpu())
    torch.testing.assert_close(logits[1], logits[0], atol=1e-2, rtol=1e-2)
