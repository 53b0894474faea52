"""What operators' calls take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from butterfly.api.checked import Body


class DrainBody(Body):
    worker: Annotated[str, Field(min_length=1, max_length=63, description="Its name, as /status shows it.")]
