"""The base of everything that is read from a request body."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Checked(BaseModel):
    """Strict types, no NaN, immutable. Fields that are not declared are kept, and ignored by most."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


class Body(Checked):
    """A whole body, not a part of one."""

    def check(self) -> None:
        """Raises InvalidRequestError for fields that are right by themselves but not together."""


def wrong(message: str) -> PydanticCustomError:
    """Return the error for a validator to raise; its text never holds what the client sent."""
    return PydanticCustomError("wrong", message)
