"""What the options of `butterfly worker` say about fetched tensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from butterfly.cli.worker import default_cache_bytes, kept_tensors
from butterfly.errors import ConfigError


class Disk(NamedTuple):
    free: int


def with_free_bytes(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Disk(num_bytes))


def test_the_cache_may_take_most_of_a_small_disk_and_50_gib_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_bytes(monkeypatch, 1000)
    assert default_cache_bytes(tmp_path / "not" / "there" / "yet") == 800
    with_free_bytes(monkeypatch, 1 << 40)
    assert default_cache_bytes(tmp_path) == 50 << 30


def test_what_was_fetched_before_does_not_make_the_cache_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / "digest").write_bytes(bytes(600))
    with_free_bytes(monkeypatch, 400)
    assert default_cache_bytes(tmp_path) == 800


def test_what_is_said_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_tensors(tmp_path, "2G", tmp_path) == (tmp_path, 2 << 30, tmp_path)
    monkeypatch.setenv("BUTTERFLY_CACHE", str(tmp_path / "cache"))
    assert kept_tensors(None, "1k", None) == (tmp_path / "cache", 1024, None)


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model-file .*no such file"):
        kept_tensors(tmp_path, "", tmp_path / "none.gguf")
    with pytest.raises(ConfigError, match="is no size"):
        kept_tensors(tmp_path, "much", None)
