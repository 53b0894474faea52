"""A stage that takes over what the one before it held: the same bits, and only what is missing is read."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from msgspec.structs import replace

from butterfly.engine import Loading, Stage
from butterfly.engine.quantization import Bytes
from butterfly.engine.tensor_data import TensorFiles
from butterfly.errors import ModelNotFoundError
from butterfly.models import Model, open_model, stage_tensors
from butterfly.specs import ComputeDType, SamplingSpec, SequenceStep, StagePlan, StepPlan, TensorEntry, WeightFormat

NUM_LAYERS = 15
MODEL = f"random:llama,hidden=64,layers={NUM_LAYERS},heads=4,kv_heads=2,vocab=300,context=256,bits=8"
TOKENS = tuple(range(30, 70))
STEP = StepPlan(
    step_id=1,
    slot=0,
    sequences=(
        SequenceStep(
            sequence_id=1,
            start=0,
            num_tokens=len(TOKENS),
            prompt_length=len(TOKENS),
            token_ids=TOKENS,
            sampling=SamplingSpec(temperature=0, num_logprobs=5),
        ),
    ),
)


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(MODEL)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the tensors whose bytes were asked for."""
    names: set[str] = set()
    read = TensorFiles.rows

    def reading(files: TensorFiles, entry: TensorEntry, start: int = 0, end: int | None = None) -> Bytes:
        names.add(entry.name)
        return read(files, entry, start, end)

    monkeypatch.setattr(TensorFiles, "rows", reading)
    return names


def load(
    model: Model,
    start: int,
    end: int,
    loading: Loading,
    *,
    ends: Sequence[str] = (),
    dtype: ComputeDType = "bfloat16",
    weights: WeightFormat = "int4",
    changed: str = "",
) -> Stage:
    """Layers [start, end) with these ends; the tensor that is `changed` has other bytes than it had."""
    plan = StagePlan(
        worker="w",
        start=start,
        end=end,
        embedding="embedding" in ends,
        head="head" in ends,
        weight_bytes=0,
        kv_bytes=0,
        predicted_compute_s=0.0,
    )
    tensors = [
        replace(entry, seed=entry.seed ^ 1) if entry.name == changed else entry
        for entry in stage_tensors(model, start, end, embedding=plan.embedding, head=plan.head)
    ]
    device = torch.device("cpu")
    return Stage(model.spec, plan, tensors, device=device, dtype=dtype, weights=weights, loading=loading)


def hidden_states(stage: Stage) -> torch.Tensor:
    values = torch.randn(len(TOKENS), 64, generator=torch.Generator().manual_seed(1))
    return values.to(stage.dtype)


def layers_in(names: set[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names if name.startswith("layers.")}


def ends_in(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith("layers.")}


def test_only_the_layers_that_are_new_are_read(model: Model, reads: set[str]) -> None:
    before = load(model, 0, 10, Loading())
    before.run(STEP, hidden_states(before))
    reads.clear()
    progress: list[tuple[int, int]] = []
    moved = load(model, 5, 15, Loading(lambda *so_far: progress.append(so_far), previous=before))
    assert layers_in(reads) == set(range(10, 15))
    assert moved.kv_used_bytes == 0
    fresh = load(model, 5, 15, Loading())
    assert torch.equal(moved.run(STEP, hidden_states(moved)), fresh.run(STEP, hidden_states(fresh)))  # type: ignore[arg-type]
    assert moved.weight_bytes == fresh.weight_bytes
    total = sum(entry.num_bytes for entry in stage_tensors(model, 5, 15, embedding=False, head=False))
    assert progress[0] == (total // 2, total)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1] == (total, total)


def test_what_is_not_wanted_is_freed_before_anything_is_read(model: Model) -> None:
    before = load(model, 0, 10, Loading())
    layers = [weakref.ref(layer) for layer in before.layers]
    alive_at_first: list[bool] = []
    moved = load(
        model,
        5,
        15,
        Loading(lambda done, total: alive_at_first.extend(layer() is not None for layer in layers), previous=before),
    )
    assert alive_at_first[:10] == [False] * 5 + [True] * 5
    assert list(moved.layers[:5]) == [layer() for layer in layers[5:]]
    assert before.weight_bytes == 0


@pytest.mark.parametrize(
    ("before", "after", "read"),
    [
        (("embedding", "head"), ("embedding", "head"), set()),
        (("embedding", "head"), (), set()),
        ((), ("embedding", "head"), {"embedding", "output_norm", "lm_head"}),
        (("embedding",), ("head",), {"output_norm", "lm_head"}),
        (("head",), ("embedding", "head"), {"embedding"}),
    ],
)
def test_the_ends_are_kept_dropped_and_gained(
    before: Sequence[str], after: Sequence[str], read: set[str], model: Model, reads: set[str]
) -> None:
    previous = load(model, 0, 3, Loading(), ends=before)
    reads.clear()
    moved = load(model, 0, 3, Loading(previous=previous), ends=after)
    assert (ends_in(reads), layers_in(reads)) == (read, set())
    fresh = load(model, 0, 3, Loading(), ends=after)
    assert moved.weight_bytes == fresh.weight_bytes
    hidden = None if "embedding" in after else hidden_states(moved)
    one, other = moved.run(STEP, hidden), fresh.run(STEP, hidden)
    assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other  # type: ignore[arg-type]


def test_another_dtype_or_other_weights_keep_nothing(model: Model, reads: set[str]) -> None:
    stage = load(model, 0, 3, Loading(), ends=("head",))
    for dtype, weights in (("float32", "int4"), ("bfloat16", "int4"), ("bfloat16", "mixed")):
        reads.clear()
        stage = load(model, 0, 3, Loading(previous=stage), ends=("head",), dtype=dtype, weights=weights)  # type: ignore[arg-type]
        assert layers_in(reads) == {0, 1, 2}
        assert ends_in(reads) == {"output_norm", "lm_head"}


def test_another_model_keeps_nothing_and_another_tensor_costs_its_layer(model: Model, reads: set[str]) -> None:
    stage = load(model, 0, 3, Loading())
    reads.clear()
    stage = load(model, 0, 3, Loading(previous=stage), changed="layers.1.down")
    assert layers_in(reads) == {1}
    reads.clear()
    load(open_model(MODEL + ",window=16"), 0, 3, Loading(previous=stage))
    assert layers_in(reads) == {0, 1, 2}


def test_a_stage_that_was_given_up_does_not_run(model: Model) -> None:
    before = load(model, 0, 2, Loading())
    load(model, 1, 3, Loading(previous=before))
    with pytest.raises(AssertionError, match="took this one over"):
        before.run(STEP, hidden_states(before))


def test_a_stage_that_was_taken_over_has_nothing_more_to_give(model: Model, reads: set[str]) -> None:
    before = load(model, 0, 2, Loading())
    moved = load(model, 0, 3, Loading(previous=before))
    reads.clear()
    load(model, 1, 2, Loading(previous=before))
    assert layers_in(reads) == {1}
    reads.clear()
    load(model, 0, 3, Loading(previous=moved))
    assert not reads


class _Abandoned(Exception):
    pass


def test_what_an_abandoned_load_read_is_there_for_the_next(model: Model, reads: set[str]) -> None:
    stage = load(model, 0, 2, Loading())

    def abandon_after_layer_4(done: int, total: int) -> None:
        if 4 in layers_in(reads):
            raise _Abandoned

    with pytest.raises(_Abandoned):
        load(model, 1, 9, Loading(abandon_after_layer_4, previous=stage))
    reads.clear()
    moved = load(model, 2, 7, Loading(previous=stage))
    assert layers_in(reads) == {5, 6}
    assert moved.plan.num_layers == len(moved.layers) == 5


class Copies:
    """Finds tensors in a file of its own, as a cache does, and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: list[set[str]] = []

    def __call__(self, tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
        self.asked.append({entry.name for entry in tensors})
        path = self._folder / f"copy-{len(self.asked)}"
        found = []
        with path.open("wb") as file:
            for entry in tensors:
                found.append(replace(entry, file=str(path), offset=file.tell(), seed=0))
                file.write(TensorFiles().rows(entry).tobytes())
        return found


def test_tensors_are_known_again_wherever_their_bytes_were_found(model: Model, tmp_path: Path) -> None:
    copies = Copies(tmp_path)
    ends = ("embedding", "head")
    stage = load(model, 0, 3, Loading(locate=copies), ends=ends)
    for path in tmp_path.iterdir():
        path.unlink()  # a cache that had to make room: what was taken over needs it no more
    stage = load(model, 0, 4, Loading(locate=copies, previous=stage), ends=ends)
    stage = load(model, 0, 4, Loading(locate=copies, previous=stage), ends=ends)
    assert [layers_in(names) for names in copies.asked] == [{0, 1, 2}, {3}]
    assert stage.run(STEP) == load(model, 0, 4, Loading(), ends=ends).run(STEP)


def test_a_tensor_that_was_not_found_leaves_the_rest(model: Model, reads: set[str]) -> None:
    stage = load(model, 0, 2, Loading())

    def nowhere(tensors: Sequence[TensorEntry]) -> Sequence[TensorEntry]:
        raise ModelNotFoundError("nobody has them")

    with pytest.raises(ModelNotFoundError):
        load(model, 0, 4, Loading(locate=nowhere, previous=stage))
    reads.clear()
    load(model, 0, 4, Loading(previous=stage))
    assert layers_in(reads) == {2, 3}


def test_moving_to_and_fro_takes_no_memory() -> None:
    model = open_model("random:llama,hidden=256,layers=8,heads=4,kv_heads=2,vocab=300,context=256,bits=8")
    process = psutil.Process()
    stage = load(model, 0, 5, Loading())
    resident: list[int] = []
    weight_bytes: set[int] = set()
    for move in range(24):
        start = 3 if move % 2 == 0 else 0
        stage = load(model, start, start + 5, Loading(previous=stage))
        weight_bytes.add(stage.weight_bytes)
        resident.append(process.memory_info().rss)
    assert len(weight_bytes) == 1
    three_layers = stage.weight_bytes * 3 // 5  # each move frees and loads as much
    assert resident[-1] - resident[3] < 2 * three_layers
