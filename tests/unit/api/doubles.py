"""A tiny real tokenizer and an engine that plays a script: what the API's tests talk to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from butterfly.api import ServedModel
from butterfly.errors import ButterflyError
from butterfly.models.chat_template import ChatTemplate
from butterfly.models.tokenizer import byte_alphabet
from butterfly.specs import ClusterStatus, FinishReason, Request, RequestOutput, TokenLogprobs

EOS = "<eos>"
BOS = "<bos>"
MAX_CONTEXT = 1000
PATIENCE_S = 20.0  # how long a test waits for what must happen before it fails

TEMPLATE = r"""
{%- if tools %}{{ "[tools]" ~ tools | tojson ~ ", called in <tool_call>\n" }}{% endif %}
{%- if style %}{{ "[style]" ~ style ~ "\n" }}{% endif %}
{%- for message in messages %}
{{- "[" ~ message.role ~ "]" }}
{%- if message.name %}{{ message.name ~ ": " }}{% endif %}
{%- if message.tool_call_id %}{{ "(" ~ message.tool_call_id ~ ") " }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls %}
{%- set arguments = call.function.arguments %}
{{- "<" ~ call.function.name ~ ">" ~ (arguments | tojson if arguments is mapping else arguments) }}
{%- endfor %}
{{- "\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{%- if messages[-1].role == "assistant" %}{{ raise_exception("the last message must not be the assistant's") }}
{%- endif %}
{{- "[assistant]" }}
{%- endif %}"""


class ByteTokenizer:
    """One token per UTF-8 byte, so that every character beyond ASCII is split over several tokens."""

    def __init__(self) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {character: index for index, character in enumerate(alphabet)}
        self._tokenizer: Any = HfTokenizer(models.BPE(vocab=vocabulary, merges=[]))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_special_tokens([AddedToken(BOS), AddedToken(EOS)])

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.special_ids:
            return str(self._tokenizer.id_to_token(token_id)).encode()
        piece = self._tokenizer.id_to_token(token_id)
        return b"" if piece is None else bytes([byte_alphabet().index(piece)])

    @property
    def eos_id(self) -> int:
        return int(self._tokenizer.token_to_id(EOS))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return [self._tokenizer.token_to_id(BOS), *ids] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self, skip_special_tokens: bool = True) -> ByteStream:
        return ByteStream(self, skip_special_tokens)


class ByteStream:
    def __init__(self, tokenizer: ByteTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []

    def step(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        if text.endswith("\ufffd"):
            return ""
        self._ids.clear()
        return text

    def flush(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        self._ids.clear()
        return text


def scored(token_id: int, num_top: int) -> TokenLogprobs:
    """The token itself is the likeliest, then come 0, 1, 2, ..."""
    logprob = -(token_id % 16 + 1) / 16
    others = [other for other in range(num_top + 1) if other != token_id]
    top = ((token_id, logprob), *((other, logprob - 1 - rank) for rank, other in enumerate(others)))
    return TokenLogprobs(token_id=token_id, logprob=logprob, top=top[:num_top])


@dataclass
class Script:
    """What the engine does with a request."""

    text: str = "Hello"
    has_eos: bool = True  # after the text; else the text is repeated for ever
    tokens_per_output: int = 1
    pause_after: int | None = None  # outputs, then silence
    fail_after: int | None = None  # outputs, then `failure`
    failure: FinishReason | Exception = "error"
    has_timed_out: bool = False  # with failure "error"
    forget_to_finish: bool = False
    num_cached_tokens: int = 0
    score: Callable[[int, int], TokenLogprobs] = scored  # of a token id, with so many of the likeliest


@dataclass
class ScriptedEngine:
    """Plays `script_of(request)`. `wait_*` may be called from the thread of the test."""

    tokenizer: ByteTokenizer
    script_of: Callable[[Request], Script] = field(default=lambda request: Script())
    refusal: Callable[[Request], ButterflyError | None] = field(default=lambda request: None)
    cluster: ClusterStatus = field(
        default=ClusterStatus(phase="ready", epoch=3, model="tiny", workers=(), running_requests=1)
    )
    submitted: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    async def submit(self, request: Request) -> AsyncIterator[RequestOutput]:
        if (error := self.refusal(request)) is not None:
            raise error
        self._note(self.submitted, request)
        return self._play(request, self.script_of(request))

    def abort(self, request_id: str) -> None:
        if request_id not in self.finished:
            self._note(self.aborted, request_id)

    def status(self) -> ClusterStatus:
        return self.cluster

    def wait_submitted(self, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.submitted) >= count, PATIENCE_S)

    def wait_aborted(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.aborted) >= count, PATIENCE_S), self.aborted

    def check_nothing_is_open(self) -> None:
        """Every accepted request has ended or was aborted, and none twice.

        A client may have read the end of its answer a moment before the server is done with it.
        """
        accepted = {request.request_id for request in self.submitted}
        with self._changed:
            assert self._changed.wait_for(lambda: accepted <= {*self.finished, *self.aborted}, PATIENCE_S)
        assert len(set(self.finished)) == len(self.finished)
        assert len(set(self.aborted)) == len(self.aborted)
        assert not set(self.finished) & set(self.aborted)

    async def _play(self, request: Request, script: Script) -> AsyncIterator[RequestOutput]:
        num_sent = 0
        for number, tokens in enumerate(self._outputs(request, script)):
            if number == script.pause_after:
                await asyncio.Event().wait()
            if number == script.fail_after:
                yield self._fail(request, script)
                return
            num_sent += len(tokens)
            reason = self._reason(request, tokens, num_sent)
            if script.forget_to_finish and reason is not None:
                self._note(self.finished, request.request_id)
                return
            if reason is not None:
                self._note(self.finished, request.request_id)
            yield RequestOutput(
                request_id=request.request_id,
                token_ids=tokens,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=num_sent,
                finish_reason=reason,
                num_cached_tokens=script.num_cached_tokens,
                logprobs=self._logprobs(request, script, tokens),
                prompt_logprobs=self._prompt_logprobs(request, script) if number == 0 else (),
            )
            if reason is not None:
                return

    def _logprobs(self, request: Request, script: Script, tokens: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
        num_top = request.sampling.num_logprobs
        return () if num_top is None else tuple(script.score(token, num_top) for token in tokens)

    def _prompt_logprobs(self, request: Request, script: Script) -> tuple[TokenLogprobs, ...]:
        num_top = request.num_prompt_logprobs
        return () if num_top is None else tuple(script.score(token, num_top) for token in request.prompt_token_ids[1:])

    def _outputs(self, request: Request, script: Script) -> list[tuple[int, ...]]:
        tokens = self.tokenizer.encode(script.text, add_special_tokens=False)
        if script.has_eos:
            tokens.append(self.tokenizer.eos_id)
        tokens = (tokens * request.max_tokens)[: request.max_tokens]
        stops = [index for index, token in enumerate(tokens) if token in request.stop_token_ids]
        stops = [index for index in stops if index >= request.min_tokens]
        tokens = tokens[: stops[0] + 1] if stops else tokens
        size = script.tokens_per_output
        return [tuple(tokens[start : start + size]) for start in range(0, len(tokens), size)]

    def _reason(self, request: Request, tokens: tuple[int, ...], num_sent: int) -> FinishReason | None:
        if tokens[-1] in request.stop_token_ids and num_sent > request.min_tokens:
            return "stop"
        return "length" if num_sent == request.max_tokens else None

    def _fail(self, request: Request, script: Script) -> RequestOutput:
        if isinstance(script.failure, Exception):
            raise script.failure
        self._note(self.finished, request.request_id)
        return RequestOutput(
            request_id=request.request_id,
            token_ids=(),
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=0,
            finish_reason=script.failure,
            error="worker-1 was lost; two workers are too few",
            timed_out=script.has_timed_out,
        )

    def _note(self, log: list[Any], entry: object) -> None:
        with self._changed:
            log.append(entry)
            self._changed.notify_all()


def served_model(tokenizer: ByteTokenizer, *, with_template: bool = True) -> ServedModel:
    return ServedModel(
        id="org/tiny",
        tokenizer=tokenizer,
        max_context=MAX_CONTEXT,
        chat_template=ChatTemplate(TEMPLATE) if with_template else None,
        eos_token_ids=(tokenizer.eos_id,),
        created=1_700_000_000,
        aliases=("tiny",),
    )
