"""What `models` tells the planner about sizes is what the engine really holds."""

from __future__ import annotations

import pytest

from butterfly.models import open_model, stage_tensors, with_weights
from butterfly.models.footprint import resident_bytes
from butterfly.specs import ComputeDType, WeightFormat
from tests.support.pipelines import load_stage

MODELS = (
    "smollm2",
    pytest.param("gemma3-270m", marks=pytest.mark.gemma),
    "random:llama,hidden=64,layers=2,heads=4,kv_heads=2,ffn=96,vocab=300,bits=4",
    "random:qwen3,hidden=64,layers=2,heads=4,kv_heads=1,ffn=96,vocab=300,bits=8",
    "random:gemma3,hidden=64,layers=2,heads=4,kv_heads=1,ffn=96,vocab=300,bits=16",
)


@pytest.mark.parametrize(
    ("dtype", "weights"), [("bfloat16", "int4"), ("bfloat16", "int8"), ("bfloat16", "mixed"), ("float32", "int4")]
)
@pytest.mark.parametrize("reference", MODELS)
def test_a_stage_holds_what_was_planned(reference: str, dtype: ComputeDType, weights: WeightFormat) -> None:
    model = with_weights(open_model(reference), dtype, weights)
    for start, end in ((0, 1), (model.spec.num_layers - 1, model.spec.num_layers)):
        head = end == model.spec.num_layers
        planned = sum(model.footprint.layer_weight_bytes[start:end]) + head * model.footprint.head_bytes
        planned += (start == 0) * model.footprint.embedding_bytes
        assert load_stage(model, start, end, dtype, weights).weight_bytes == planned


def test_packed_weights_stay_close_to_their_file() -> None:
    """4-bit stays 4-bit: a quarter more than stored at most, for the types that SmolLM2 uses."""
    model = open_model("smollm2")
    tensors = stage_tensors(model, 0, model.spec.num_layers, embedding=False, head=True)
    stored = sum(entry.num_bytes for entry in tensors)
    held = sum(resident_bytes(entry, "bfloat16") for entry in tensors)
    assert held <= 1.25 * stored
