from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from butterfly.messages import Profile
from butterfly.specs import ComputeProfile, LayerProfile, LayerSpec, RopeSpec, TimeTable
from butterfly.worker.profile_cache import CachedProfiler
from butterfly.worker.profiling import Report
from tests.unit.worker.slow_samples import request

NODE: dict[str, str | int | float | None] = {"cpu": "a quick one", "threads": 2, "cpu_quota": None}


class CountingProfiler:
    """Each profile is another one."""

    def __init__(self) -> None:
        self.num_calls = 0

    def profile(self, request: Profile, report: Report) -> ComputeProfile:
        self.num_calls += 1
        table = TimeTable(num_tokens=(1, 2), contexts=(0,), seconds=((0.1 * self.num_calls, 1 / 3),))
        kinds = (LayerProfile(decode=table, prefill=table),) * len(request.layers)
        return ComputeProfile(layers=kinds, head=table, step_s=1e-7)


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., ComputeProfile]:
    """Ask a new cached profiler, as a new process would, in front of the same counting one."""
    profiler = CountingProfiler()

    def ask_again(
        request: Profile, node: dict[str, str | int | float | None] = NODE, *, refresh: bool = False
    ) -> ComputeProfile:
        return CachedProfiler(profiler, node, tmp_path / "profiles", refresh=refresh).profile(
            request, lambda share: None
        )

    return ask_again


def same_shape(request: Profile) -> list[Profile]:
    """What decides about no time: names, places and contents of files, the epoch, a context beyond what is measured."""
    entry = request.tensors[0]
    moved = replace(entry, file="/somewhere/else", offset=99, seed=5, add=1.0)
    return [
        replace(request, epoch=9),
        replace(request, tensors=(moved, *request.tensors[1:])),
        replace(request, model=replace(request.model, name="other", family="other", max_context=100_000)),
        replace(request, model=replace(request.model, ropes=(RopeSpec(theta=1e4, dim=8),))),
    ]


def other_shapes(request: Profile) -> list[Profile]:
    entry, model = request.tensors[0], request.model
    windowed = (LayerSpec(window=9), *model.layers[1:])
    return [
        replace(request, dtype="float32"),
        replace(request, weights="int8"),
        replace(request, tensors=(replace(entry, storage="Q4_0"), *request.tensors[1:])),
        replace(request, tensors=(replace(entry, shape=(32, 64)), *request.tensors[1:])),
        replace(request, model=replace(model, num_kv_heads=4)),
        replace(request, model=replace(model, max_context=256)),
        replace(request, model=replace(model, layers=windowed)),
        replace(request, model=replace(model, layers=model.layers[1:])),
    ]


def test_what_was_measured_is_found_again_exactly(ask: Callable[..., ComputeProfile]) -> None:
    first = ask(request())
    assert ask(request()) == first
    assert [ask(alike) for alike in same_shape(request())] == [first] * 4


def test_another_shape_is_measured(ask: Callable[..., ComputeProfile]) -> None:
    found = [ask(request()), *map(ask, other_shapes(request()))]
    assert len({profile.head.seconds for profile in found}) == 9


@pytest.mark.parametrize("change", [{"cpu": "another"}, {"threads": 1}, {"cpu_quota": 0.5}])
def test_another_node_is_measured(change: dict[str, str | int | float], ask: Callable[..., ComputeProfile]) -> None:
    assert ask(request()) != ask(request(), {**NODE, **change})


def test_refresh_measures_and_keeps(ask: Callable[..., ComputeProfile]) -> None:
    before = ask(request())
    refreshed = ask(request(), refresh=True)
    assert refreshed != before
    assert ask(request()) == refreshed


@pytest.mark.parametrize("content", [b"", b"{", b'{"node": {}, "profile": {}}', b"\xff\xfe", b"[]"])
def test_a_broken_file_is_measured_anew(
    content: bytes, tmp_path: Path, ask: Callable[..., ComputeProfile], caplog: pytest.LogCaptureFixture
) -> None:
    before = ask(request())
    (file,) = (tmp_path / "profiles").iterdir()
    file.write_bytes(content)
    again = ask(request())
    assert again != before
    assert "measuring again" in caplog.text
    assert ask(request()) == again


def test_a_file_cut_short_is_measured_anew(tmp_path: Path, ask: Callable[..., ComputeProfile]) -> None:
    before = ask(request())
    (file,) = (tmp_path / "profiles").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert ask(request()) != before


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    profiler = CountingProfiler()
    cached = CachedProfiler(profiler, NODE, tmp_path / "file" / "profiles")
    cached.profile(request(), lambda share: None)
    assert "cannot keep the profile" in caplog.text
    cached.profile(request(), lambda share: None)
    assert profiler.num_calls == 2


def test_nothing_else_is_left_in_the_folder(tmp_path: Path, ask: Callable[..., ComputeProfile]) -> None:
    ask(request())
    assert [file.suffix for file in (tmp_path / "profiles").iterdir()] == [".json"]
