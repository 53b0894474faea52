"""The folder for what benchmarks make once and keep: peers and synthetic models. Outside the source tree."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "BUTTERFLY_BENCH_CACHE"


def bench_cache_folder() -> Path:
    """Return $BUTTERFLY_BENCH_CACHE, else ~/.cache/butterfly-bench. It may not exist yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "butterfly-bench"
