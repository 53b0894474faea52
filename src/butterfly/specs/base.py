"""The base of all border data."""

from __future__ import annotations

import msgspec


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all border data: immutable, compared by value, encodable by msgspec."""
