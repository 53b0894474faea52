"""What the API wants of others. Whoever has these shapes fits; nobody needs to import this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from butterfly.specs import ClusterStatus, Request, RequestOutput


class EngineClient(Protocol):
    """Runs requests. Used from the event loop of the API only."""

    async def submit(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Accept the request and return its outputs; the last one has a finish reason.

        Raises ContextLengthError, InvalidRequestError, OverloadedError or NotReadyError before anything
        is generated. The API stops reading once it has aborted, and closes an async generator then.
        """

    def abort(self, request_id: str) -> None:
        """End the request. Returns at once; a request that is unknown or has ended is ignored."""

    def status(self) -> ClusterStatus:
        """Return a snapshot without waiting for anybody."""


class ClusterOperator(Protocol):
    """Changes the cluster."""

    async def drain(self, worker: str) -> None:
        """Agree that a worker leaves as soon as others hold its layers.

        Raises InvalidRequestError for one that is not there, PlanError when the others cannot hold them.
        """


class TokenStream(Protocol):
    """Turns the tokens of one output into text, one by one."""

    def step(self, token_id: int) -> str:
        """Return the text that is now certain, never half a character. May be empty."""

    def flush(self) -> str:
        """Return what is left at the end."""


class Tokenizer(Protocol):
    """Text <-> token ids. `encode` is called from other threads too (long prompts)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> frozenset[int]:
        """The control tokens, which are no text: hidden when an output is decoded, unless asked for."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def stream(self, skip_special_tokens: bool = True) -> TokenStream: ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token stands for by itself, special or not; b"" for an id without meaning."""


class ChatTemplate(Protocol):
    @property
    def source(self) -> str:
        """The template as it is written: it shows how its model spells tool calls."""

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """Return the prompt text.

        A message has `role` (system, user, assistant, tool) and `content`, perhaps `name`, `tool_calls`
        and `tool_call_id`; `extra` are more variables (`tools`). Raises InvalidRequestError when the
        template refuses the messages.
        """


class MetricsSource(Protocol):
    @property
    def content_type(self) -> str: ...

    def render(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The one model behind the API, as clients see it."""

    id: str
    tokenizer: Tokenizer
    max_context: int  # tokens, prompt and output together
    chat_template: ChatTemplate | None = None  # None: only /v1/completions
    eos_token_ids: tuple[int, ...] = ()
    bos_token: str = ""  # as text; "": it has none
    eos_token: str = ""
    created: int = 0  # seconds since 1970, for /v1/models
    aliases: tuple[str, ...] = field(default=())  # other ids that clients may ask for
