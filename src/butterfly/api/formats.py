"""How an answer is written, whichever endpoint it is of."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import UnsetType

from butterfly.api.choices import ChoiceEvent
from butterfly.api.shapes import PromptTokensDetails, Shape, Usage


@dataclass(frozen=True, slots=True)
class Head:
    """What every body and chunk of one answer has in common."""

    id: str
    model: str
    created: int  # seconds since 1970

    @classmethod
    def new(cls, prefix: str, model_id: str) -> Head:
        return cls(f"{prefix}{uuid.uuid4().hex}", model_id, int(time.time()))


ChunkUsage = Usage | None | UnsetType
"""The usage so far; None: it comes in a later chunk; UNSET: the client has not asked for it."""


class Format(Protocol):
    """Writes the answer of one call, once: whole, or in chunks."""

    def whole(self, events: Sequence[Sequence[ChoiceEvent]], usage: Usage) -> Shape:
        """Return the whole answer from all events of each choice."""

    def chunks(self, event: ChoiceEvent, usage: ChunkUsage) -> Iterator[Shape]:
        """Return the chunks that one event makes: perhaps none."""

    def usage_chunk(self, usage: Usage) -> Shape:
        """Return the chunk at the end that has no choices."""


def usage_of(num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
    )
