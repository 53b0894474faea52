"""Stages of copies of one layer compute what stages of that layer do, from memory of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from msgspec.structs import replace

from butterfly.engine import LayerSamples, Stage
from butterfly.engine.layer_samples import cut_head
from butterfly.models import Model, open_model, profile_tensors, stage_tensors
from butterfly.specs import SamplingSpec, SequenceStep, StepPlan, TensorEntry, WeightFormat
from butterfly.worker.resources import has_int8_instructions
from tests.support.pipelines import load_stage

NUM_TOKENS = 70  # more than a block of keys
CPU = torch.device("cpu")
VOCAB = 320

needs_int8 = pytest.mark.skipif(not has_int8_instructions(), reason="this CPU has no instructions for 8-bit products")
every_format = pytest.mark.parametrize(
    "weights", ["int4", pytest.param("int8", marks=needs_int8), pytest.param("mixed", marks=needs_int8)]
)


@pytest.fixture(scope="module", params=["llama,bits=8", "gemma3,bits=4,window=32"])
def model(request: pytest.FixtureRequest) -> Model:
    family, _, rest = request.param.partition(",")
    return open_model(f"random:{family},hidden=64,layers=7,heads=4,kv_heads=2,vocab={VOCAB},context=256,{rest}")


def samples_of(model: Model, layer: int, weights: WeightFormat = "int4") -> LayerSamples:
    _, tensors = profile_tensors(model)
    return LayerSamples(model.spec, layer, tensors, device=CPU, dtype="bfloat16", weights=weights)


def stage_of(model: Model, layer: int, weights: WeightFormat) -> Stage:
    """As it serves, but without the embedding that a first stage has."""
    plan = load_stage(model, 1, 2).plan
    plan = replace(plan, start=layer, end=layer + 1)
    tensors = stage_tensors(model, layer, layer + 1, embedding=False, head=False)
    return Stage(model.spec, plan, tensors, device=CPU, dtype="bfloat16", weights=weights)


def prompt(start: int = 0, num_tokens: int = NUM_TOKENS, sampling: SamplingSpec | None = None) -> StepPlan:
    sequence = SequenceStep(
        sequence_id=1, start=start, num_tokens=num_tokens, prompt_length=start + num_tokens, sampling=sampling
    )
    return StepPlan(step_id=0, slot=0, sequences=(sequence,))


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(NUM_TOKENS, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


@every_format
def test_copies_compute_the_same_bits(weights: WeightFormat, model: Model, hidden: torch.Tensor) -> None:
    layers, _ = profile_tensors(model)
    for layer in layers:
        expected = hidden
        real = stage_of(model, layer, weights)
        for _ in range(3):
            expected = real.forward(prompt(), expected)
            real.forward(StepPlan(step_id=0, slot=0, sequences=(), released=(1,)), expected[:0])
        samples = samples_of(model, layer, weights)
        assert torch.equal(samples.stage(3).forward(prompt(), hidden), expected)
        assert samples.layer_bytes == real.weight_bytes


def weights_of(stage: Stage) -> Iterator[torch.Tensor]:
    found: list[object] = list(stage.layers)
    while found:
        thing = found.pop()
        if isinstance(thing, torch.Tensor) and not thing.is_mkldnn:
            yield thing
        elif isinstance(thing, (list, tuple)):
            found += thing
        elif type(thing).__module__.startswith("butterfly.engine"):
            found += vars(thing).values()


@every_format
def test_no_two_copies_share_memory(weights: WeightFormat, model: Model) -> None:
    stage = samples_of(model, 0, weights).stage(3)
    addresses = [tensor.data_ptr() for tensor in weights_of(stage) if tensor.numel()]
    per_layer, rest = divmod(len(addresses), 3)
    assert (per_layer > 4, rest) == (True, 0)
    groups = [set(addresses[index * per_layer :][:per_layer]) for index in range(3)]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]


def test_the_head_is_that_of_the_model(model: Model, hidden: torch.Tensor) -> None:
    last = model.spec.num_layers - 1
    real = load_stage(model, last, last + 1)
    samples = samples_of(model, last) if last in profile_tensors(model)[0] else samples_of(model, 0)
    assert torch.equal(samples.stage(2, head=True).logits(hidden), real.logits(hidden))
    answer = samples.stage(1, head=True).run(prompt(sampling=SamplingSpec(temperature=0)), hidden)
    assert isinstance(answer, tuple)
    assert len(answer[0]) == 1


def test_a_pretended_cache_is_read_and_gone_on_from(model: Model, hidden: torch.Tensor) -> None:
    stage = samples_of(model, 0).stage(2)
    stage.pretend(1, 100)
    first = stage.forward(prompt(100), hidden)
    assert stage.kv_used_bytes == 2 * samples_of(model, 0).kv_bytes_per_token * (100 + NUM_TOKENS)
    stage.pretend(1, 100)  # back again, to run the same step
    assert torch.equal(stage.forward(prompt(100), hidden), first)
    stage.pretend(1, 0)
    assert not torch.equal(stage.forward(prompt(0), hidden), first)


def head_entries(storage: str, row_bytes: int) -> list[TensorEntry]:
    norm = TensorEntry(name="output_norm", storage="F32", shape=(64,), num_bytes=256)
    head = TensorEntry(name="lm_head", storage=storage, shape=(1000, 64), num_bytes=1000 * row_bytes)  # type: ignore[arg-type]
    return [norm, head]


@pytest.mark.parametrize(
    ("storage", "row_bytes", "loaded_row_bytes"), [("Q8_0", 68, 80), ("BF16", 128, 128)], ids=["quantised", "plain"]
)
def test_a_head_is_cut_to_what_may_be_taken(storage: str, row_bytes: int, loaded_row_bytes: int) -> None:
    entries = head_entries(storage, row_bytes)
    (norm, head), factor = cut_head(entries, "bfloat16", 300 * loaded_row_bytes)
    assert norm == entries[0]
    assert (head.shape, head.num_bytes, factor) == ((256, 64), 256 * row_bytes, 1000 / 256)
    assert cut_head(entries, "bfloat16", 1000 * loaded_row_bytes + 5000) == (entries, 1.0)
    assert cut_head(entries, "bfloat16", 1)[0][1].shape == (64, 64)  # one block of the kernel: no less


def test_a_cut_head_has_the_first_logits(model: Model, hidden: torch.Tensor) -> None:
    _, tensors = profile_tensors(model)
    cut, factor = cut_head(tensors, "bfloat16", 128 * 80)
    assert factor == VOCAB / 128
    few = LayerSamples(model.spec, 0, cut, device=CPU, dtype="bfloat16", weights="int4").stage(1, head=True)
    whole = samples_of(model, 0).stage(1, head=True)
    assert torch.equal(few.logits(hidden), whole.logits(hidden)[:, :128])
