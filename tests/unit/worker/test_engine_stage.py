"""The engine behind the worker's protocol: what is located, what is taken over, and the progress of both."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from msgspec.structs import replace

from butterfly.errors import ModelFormatError, WorkerError
from butterfly.messages import Load, PeerAddress
from butterfly.models import Model, open_model, stage_tensors
from butterfly.specs import StagePlan, TensorEntry
from butterfly.worker.engine_stage import EngineStageFactory
from butterfly.worker.stage import Progress
from tests.unit.worker.loads import NOBODY

CPU = torch.device("cpu")
PEER = PeerAddress(name="w9", endpoint="tcp://192.0.2.1:1", public_key="")


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("random:llama,hidden=64,layers=6,heads=4,kv_heads=2,vocab=300,context=256,bits=8")


def load_of(model: Model, start: int, end: int, sources: tuple[PeerAddress, ...] = (PEER,)) -> Load:
    plan = StagePlan(
        worker="w0",
        start=start,
        end=end,
        embedding=False,
        head=False,
        weight_bytes=0,
        kv_bytes=0,
        predicted_compute_s=0.0,
    )
    return Load(
        epoch=1,
        model=model.spec,
        stage=plan,
        tensors=tuple(stage_tensors(model, start, end, embedding=False, head=False)),
        dtype="bfloat16",
        weights="int4",
        previous=NOBODY,
        next=NOBODY,
        max_context=256,
        sources=sources,
    )


class Fetching:
    """Tells of two halves of what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.sources: list[Sequence[PeerAddress]] = []

    def __call__(
        self, tensors: Sequence[TensorEntry], sources: Sequence[PeerAddress], progress: Progress
    ) -> Sequence[TensorEntry]:
        self.asked.append({entry.name.split(".")[1] for entry in tensors})
        self.sources.append(sources)
        num_bytes = sum(entry.num_bytes for entry in tensors)
        for done in (0, num_bytes // 2, num_bytes):
            progress(done, num_bytes)
        return tensors


def test_only_what_is_missing_is_fetched_and_fetching_is_half_of_the_way(model: Model) -> None:
    fetching, seen = Fetching(), []
    factory = EngineStageFactory(CPU, fetching)
    stage = factory.load(load_of(model, 0, 2), lambda *so_far: None)
    moved = factory.load(load_of(model, 1, 3), lambda *so_far: seen.append(so_far), stage)
    assert fetching.asked == [{"0", "1"}, {"2"}]
    assert fetching.sources == [(PEER,), (PEER,)]
    total = sum(entry.num_bytes for entry in load_of(model, 1, 3).tensors)
    eighths = [(done * 8 // total, of) for done, of in seen]
    assert eighths == [(4, total), (4, total), (5, total), (6, total), (8, total)]
    assert factory.load(load_of(model, 1, 3), lambda *so_far: seen.append(so_far), moved).weight_bytes
    assert seen[-1] == (total, total)
    assert len(fetching.asked) == 2  # the third had all of it


def test_without_sources_tensors_are_where_the_coordinator_says(model: Model) -> None:
    fetching = Fetching()
    EngineStageFactory(CPU, fetching).load(load_of(model, 0, 1, sources=()), lambda *so_far: None)
    assert fetching.asked == []


def test_what_progress_raises_passes_and_the_next_try_goes_on(model: Model) -> None:
    class NotWanted(Exception):
        pass

    def not_any_more(done: int, total: int) -> None:
        if 2 * done > total:
            raise NotWanted

    fetching = Fetching()
    factory = EngineStageFactory(CPU, fetching)
    stage = factory.load(load_of(model, 0, 1), lambda *so_far: None)
    with pytest.raises(NotWanted):
        factory.load(load_of(model, 0, 4), not_any_more, stage)
    assert factory.load(load_of(model, 0, 1), lambda *so_far: None, stage).weight_bytes
    assert fetching.asked == [{"0"}, {"1", "2", "3"}]  # layer 0 was there all the time


def test_a_tensor_that_is_not_in_the_load_is_named(model: Model) -> None:
    load = load_of(model, 0, 1)
    without = replace(load, tensors=tuple(entry for entry in load.tensors if entry.name != "layers.0.attn_norm"))
    with pytest.raises(ModelFormatError, match=r"layers\.0\.attn_norm"):
        EngineStageFactory(CPU).load(without, lambda *so_far: None)


def test_an_error_of_torch_while_loading_is_one_line_about_the_worker(model: Model) -> None:
    def breaks(*_: object) -> Sequence[TensorEntry]:
        raise RuntimeError("a kernel\nsays much")

    with pytest.raises(WorkerError, match=r"^w0 could not compute: a kernel$"):
        EngineStageFactory(CPU, breaks).load(load_of(model, 0, 1), lambda *so_far: None)
