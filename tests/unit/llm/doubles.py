"""A small real model without weights, and an engine that plays a script: what the Python face's tests talk to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache

from butterfly.errors import ButterflyError
from butterfly.models import ChatTemplate, Model, limit_context, open_model
from butterfly.specs import ClusterStatus, Request, RequestOutput, TokenLogprobs

EOS = 300  # the tokens below 256 are bytes
MAX_CONTEXT = 64
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ tools | length if tools else '' }}>"


@cache
def tiny_model() -> Model:
    """Its tokenizer has one token for each byte."""
    model = limit_context(open_model("random:llama,hidden=64,layers=2"), MAX_CONTEXT)
    return replace(model, eos_token_ids=(EOS,), chat_template=ChatTemplate(TEMPLATE))


def says(
    request: Request, text: str, *, tokens_per_output: int = 1, ends: bool = True, num_cached_tokens: int = 0
) -> Iterator[RequestOutput]:
    """The outputs of a request that is answered with `text` and the end token, or with `text` for ever."""
    token_ids = [*text.encode(), *([EOS] if ends else [])]
    asked = request.sampling.num_logprobs is not None
    num_sent = 0
    while True:
        for start in range(0, len(token_ids), tokens_per_output):
            new = tuple(token_ids[start : start + tokens_per_output])
            num_sent += len(new)
            yield RequestOutput(
                request_id=request.request_id,
                token_ids=new,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=num_sent,
                finish_reason="stop" if ends and num_sent == len(token_ids) else None,
                num_cached_tokens=num_cached_tokens,
                logprobs=tuple(_logprob(token_id) for token_id in new) if asked else (),
                prompt_logprobs=_prompt_logprobs(request) if num_sent == len(new) else (),
            )
        if ends:
            return


def fails(request: Request, error: str, *, timed_out: bool = False) -> Iterator[RequestOutput]:
    """The outputs of a request that ends with an error."""
    yield RequestOutput(
        request_id=request.request_id,
        token_ids=(),
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=0,
        finish_reason="error",
        error=error,
        timed_out=timed_out,
    )


def prompt_of(request: Request) -> str:
    return bytes(request.prompt_token_ids).decode()


@dataclass
class ScriptedEngine:
    """Fits `EngineClient`. Plays `script_of(request)`, or raises it when it is an error, one output a turn."""

    script_of: Callable[[Request], Iterable[RequestOutput] | ButterflyError]
    submitted: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0

    async def submit(self, request: Request) -> AsyncIterator[RequestOutput]:
        script = self.script_of(request)
        if isinstance(script, ButterflyError):
            raise script
        self.submitted.append(request)
        return self._play(script)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def status(self) -> ClusterStatus:
        return ClusterStatus(phase="ready", epoch=1, model="tiny", workers=())

    async def _play(self, script: Iterable[RequestOutput]) -> AsyncIterator[RequestOutput]:
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            for output in script:
                await asyncio.sleep(0)  # the others' turn
                yield output
        finally:
            self.num_open -= 1


def _logprob(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(token_id=token_id, logprob=-0.5, top=((65, -0.25), (token_id, -0.5)))


def _prompt_logprobs(request: Request) -> tuple[TokenLogprobs, ...]:
    if request.num_prompt_logprobs is None:
        return ()
    return tuple(TokenLogprobs(token_id=token_id, logprob=-1.0) for token_id in request.prompt_token_ids[1:])
