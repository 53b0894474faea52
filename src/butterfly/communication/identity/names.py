"""What a worker may be called."""

from __future__ import annotations

import re

MAX_NAME_CHARACTERS = 63
NAME_RULE = (
    f"a name has 1 to {MAX_NAME_CHARACTERS} of the characters A-Z a-z 0-9 . _ - and begins with a letter or a digit"
)

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARACTERS - 1}}}")


def is_name(text: str) -> bool:
    """Whether `text` keeps NAME_RULE. Such a name is safe as part of a file's name, too."""
    return _NAME.fullmatch(text) is not None


def name_from(text: str, fallback: str = "worker") -> str:
    """Return the nearest name to `text`, a host's name for instance; `fallback` when nothing of it is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:MAX_NAME_CHARACTERS] or fallback


def numbered(name: str, number: int) -> str:
    """('w', 1) -> 'w'; ('w', 2) -> 'w-2'; long names are cut so that the number fits."""
    if number == 1:
        return name
    suffix = f"-{number}"
    return name[: MAX_NAME_CHARACTERS - len(suffix)] + suffix
