"""Butterfly: one transformer, several ordinary machines.

From Python: `from butterfly import LLM, SamplingParams`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from butterfly.llm import LLM, AsyncLLM, BatchError, Completion, Generation, Logprob, Piece, SamplingParams

__version__ = "0.1.0"

__all__ = ["AsyncLLM", "BatchError", "Completion", "Generation", "LLM", "Logprob", "Piece", "SamplingParams"]


def __getattr__(name: str) -> object:
    """The Python face, imported when it is asked for: commands and workers do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("butterfly.llm"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
