"""Finding and building the peer, without a network or a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.cache import CACHE_VARIABLE
from benchmarks.peers import llama_cpp
from benchmarks.peers.llama_cpp import BuildError, build, find

SOURCE = Path("llama_cpp_python-0.3.36", "vendor", "llama.cpp")
FAKE_CMAKE = """#!/bin/sh
if [ "$1" = --build ]; then
    mkdir -p "$2/bin"
    echo "[ 50%] Building"
    for program in $PROGRAMS; do touch "$2/bin/$program"; chmod +x "$2/bin/$program"; done
fi
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a compiler, and a cmake that touches the programs named in $PROGRAMS."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("cmake", "c++", "make"):
        (folder / name).write_text(FAKE_CMAKE)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CXX", raising=False)
    return folder


def ignore(what: str, share: float) -> None:
    pass


def test_a_build_without_all_programs_is_not_found(cache: Path) -> None:
    assert find() is None
    programs = cache / SOURCE / "build" / "bin"
    programs.mkdir(parents=True)
    (programs / "llama-server").touch(mode=0o755)
    assert find() is None


def test_a_build_goes_on_from_an_extracted_source(cache: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / SOURCE).mkdir(parents=True)
    monkeypatch.setenv("PROGRAMS", " ".join(llama_cpp._TARGETS))
    seen: list[tuple[str, float]] = []
    built = build(lambda what, share: seen.append((what, share)))
    assert built == find()
    assert built.server.is_file()
    assert ("building llama.cpp", 0.5) in seen
    assert "Building" in (cache / "build.log").read_text()


def test_missing_programs_after_a_build_are_an_error(cache: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / SOURCE).mkdir(parents=True)
    monkeypatch.setenv("PROGRAMS", "llama-bench")
    with pytest.raises(BuildError, match="programs are missing"):
        build(ignore)


def test_a_failing_step_shows_its_last_lines(cache: Path, tools: Path) -> None:
    (cache / SOURCE).mkdir(parents=True)
    (tools / "cmake").write_text("#!/bin/sh\necho no such generator\nexit 1\n")
    with pytest.raises(BuildError, match=r"(?s)cmake does not like.*no such generator"):
        build(ignore)


def test_a_download_that_is_something_else_is_refused(cache: Path, tools: Path) -> None:
    sdist = cache / "sdist" / "llama_cpp_python-0.3.36.tar.gz"
    sdist.parent.mkdir(parents=True)
    sdist.write_bytes(b"something else")
    with pytest.raises(BuildError, match="not the file that is expected"):
        build(ignore)


@pytest.mark.parametrize(("tool", "advice"), [("cmake", "install the package cmake"), ("c++", "install g++")])
def test_a_missing_tool_is_named(
    cache: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, tool: str, advice: str
) -> None:
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("sys.executable", str(tools / "python"))
    (tools / tool).unlink()
    with pytest.raises(BuildError, match=advice):
        build(ignore)
