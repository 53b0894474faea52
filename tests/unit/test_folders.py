from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from butterfly.folders import CACHE_VARIABLE, STATE_VARIABLE, cache_folder, state_folder


@pytest.mark.parametrize(
    ("folder", "variable", "xdg_variable", "below_home"),
    [
        (cache_folder, CACHE_VARIABLE, "XDG_CACHE_HOME", ".cache"),
        (state_folder, STATE_VARIABLE, "XDG_STATE_HOME", ".local/state"),
    ],
)
def test_folders_follow_the_environment(
    folder: Callable[[], Path],
    variable: str,
    xdg_variable: str,
    below_home: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv(xdg_variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder() == tmp_path / below_home / "butterfly"
    monkeypatch.setenv(xdg_variable, str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "butterfly"
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine"
