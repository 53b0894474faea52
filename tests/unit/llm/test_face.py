"""What `import butterfly` brings, and what it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

import butterfly
import butterfly.llm
from butterfly.errors import ConfigError, ModelNotFoundError


def test_the_package_shows_what_the_room_exports() -> None:
    assert butterfly.__all__ == butterfly.llm.__all__
    for name in butterfly.__all__:
        assert getattr(butterfly, name) is getattr(butterfly.llm, name)
        assert name in dir(butterfly)
    assert butterfly.__version__ in vars(butterfly).values()
    with pytest.raises(AttributeError, match="module 'butterfly' has no attribute 'LLMs'"):
        butterfly.LLMs  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    program = """
import sys, butterfly
print(butterfly.__version__, "butterfly.llm" in sys.modules)
butterfly.LLM
print("butterfly.llm" in sys.modules, "torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{butterfly.__version__} False\nTrue False False\n"


def test_a_wrong_start_is_refused_before_anything_runs() -> None:
    """The check that no thread and no process is left runs after every test."""
    with pytest.raises(ConfigError, match=r"unknown option worker: did you mean workers\?"):
        butterfly.LLM("smollm2", worker=3)  # type: ignore[call-arg]
    with pytest.raises(ModelNotFoundError, match=r"no model 'smolm2'.*did you mean 'smollm2'\?"):
        butterfly.LLM("smolm2", progress=False)
    with pytest.raises(ConfigError, match="memory"):
        butterfly.AsyncLLM("smollm2", memory=-1)
