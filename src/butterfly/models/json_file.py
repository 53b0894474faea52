"""Reading the JSON files that come with a model, with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from butterfly.errors import ModelFormatError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises ModelFormatError when it is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ModelFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFormatError(f"{path}: not a JSON object: {error}") from error


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, or an empty one when the file is not there."""
    return read_json_object(path) if path.exists() else {}
