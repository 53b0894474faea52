"""llama.cpp with its RPC backend: found, or fetched and built.

The source is the one that the sdist of llama-cpp-python carries: one pinned version, from the package index.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.cache import bench_cache_folder

REQUIREMENT = "llama-cpp-python==0.3.36"
_NAME = "llama_cpp_python-0.3.36"
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_TARGETS = ("llama-bench", "llama-batched-bench", "llama-server", "ggml-rpc-server", "llama-quantize")
_OPTIONS = ("GGML_RPC=ON", "LLAMA_CURL=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_BUILD_TESTS=OFF", "CMAKE_BUILD_TYPE=Release")
_COMPILERS = ("c++", "g++", "clang++")
_PERCENTAGE = re.compile(r"\[ *(\d+)%\]")
_TAIL_LINES = 12

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of that which is done, 0 to 1."""


class BuildError(Exception):
    """What is missing or what went wrong, and what to do about it."""


class LlamaCpp(NamedTuple):
    """A finished build; `folder` holds the programs."""

    folder: Path

    @property
    def server(self) -> Path:
        return self.folder / "llama-server"

    @property
    def rpc_server(self) -> Path:
        return self.folder / "ggml-rpc-server"

    @property
    def bench(self) -> Path:
        return self.folder / "llama-bench"

    @property
    def batched_bench(self) -> Path:
        return self.folder / "llama-batched-bench"


def find() -> LlamaCpp | None:
    """Return the build in the cache folder, None when there is none or it is not finished."""
    folder = _source_folder() / "build" / "bin"
    return LlamaCpp(folder) if all(os.access(folder / target, os.X_OK) for target in _TARGETS) else None


def build(progress: Progress) -> LlamaCpp:
    """Return the build; fetch and make what is not there yet. An interrupted build goes on where it was.

    Raises BuildError.
    """
    if found := find():
        return found
    cmake = _check_tools()
    source = _source_folder()
    try:
        source.parents[2].mkdir(parents=True, exist_ok=True)
        with (source.parents[2] / "build.log").open("a") as log:
            if not source.is_dir():
                _extract(_download(progress, log.fileno()), progress)
            _make(cmake, source, progress, log.fileno())
    except OSError as error:
        raise BuildError(f"cannot build llama.cpp in {source.parents[2]}: {error}") from error
    made = find()
    if made is None:
        raise BuildError(f"cmake was content, but programs are missing in {source / 'build' / 'bin'}: remove {source}")
    return made


def _source_folder() -> Path:
    return bench_cache_folder() / _NAME / "vendor" / "llama.cpp"


def _check_tools() -> str:
    """Return the path of cmake, which may also lie beside this Python: the index has it as a wheel."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)
    if cmake is None:
        raise BuildError("there is no cmake: install the package cmake (from the system, or with pip)")
    if shutil.which(os.environ.get("CXX", "")) is None and not any(map(shutil.which, _COMPILERS)):
        raise BuildError("there is no C++ compiler: install g++ (Debian, Ubuntu: build-essential; Fedora: gcc-c++)")
    if shutil.which("make") is None and shutil.which("ninja") is None:
        raise BuildError("there is no make: install the package make (Debian, Ubuntu: build-essential)")
    return cmake


def _download(progress: Progress, log: int) -> Path:
    """Return the sdist, checked against the digest that this file names."""
    target = bench_cache_folder() / "sdist" / f"{_NAME}.tar.gz"
    if not target.is_file():
        progress("downloading llama.cpp (77 MB)", 0.0)
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", scratch]
            _run([*pip, REQUIREMENT], "pip could not download it", log, lambda line: None)
            (Path(scratch) / target.name).replace(target)
    if hashlib.sha256(target.read_bytes()).hexdigest() != _SHA256:
        raise BuildError(f"{target} is not the file that is expected: remove it and try again")
    return target


def _extract(archive: Path, progress: Progress) -> None:
    progress("extracting llama.cpp", 0.0)
    with TemporaryDirectory(prefix=".extracting-", dir=bench_cache_folder()) as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (Path(scratch) / _NAME).rename(bench_cache_folder() / _NAME)


def _make(cmake: str, source: Path, progress: Progress, log: int) -> None:
    def show(line: str) -> None:
        if match := _PERCENTAGE.match(line):
            progress("building llama.cpp", int(match[1]) / 100)

    progress("configuring llama.cpp", 0.0)
    folder = source / "build"
    options = [f"-D{option}" for option in _OPTIONS]
    _run([cmake, "-S", str(source), "-B", str(folder), *options], "cmake does not like this system", log, show)
    jobs = str(len(os.sched_getaffinity(0)))
    command = [cmake, "--build", str(folder), "--parallel", jobs, "--target", *_TARGETS]
    _run(command, "the build failed", log, show)


def _run(argv: Sequence[str], failure: str, log: int, show: Callable[[str], None]) -> None:
    """Run a command, its output into the log and line by line to `show`. Raises BuildError with its last lines."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                os.write(log, line.encode())
                tail.append(line.rstrip())
                show(line)
        except BaseException:  # Ctrl-C above all: leave no compiler running
            process.terminate()
            raise
    if process.returncode:
        raise BuildError(f"{failure}:\n" + "\n".join(tail))
