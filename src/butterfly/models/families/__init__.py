"""Model families as data: a spec builder, a weight-name map and small flags each, one file per family.

To add one, write a module here that calls `register(Family(...))`, and one row in
tests/unit/models/test_families.py. Modules are found by themselves; nothing else changes.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from butterfly.models.families.registry import (
    Family,
    families,
    family_for_gguf,
    family_for_hf,
    register,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Family", "families", "family_for_gguf", "family_for_hf", "register"]
