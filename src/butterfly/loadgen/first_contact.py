"""What must be known of a server before the clock starts: that it is there, its model, its dialect."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import msgspec

from butterfly.errors import ConfigError
from butterfly.loadgen.asking import Asked, ask, base_url
from butterfly.loadgen.dialect import Dialect, first_dialect, make_prompt, relaxed, request_body
from butterfly.loadgen.prompts import random_text
from butterfly.loadgen.spec import LoadSpec

_PATIENCE_S = 10.0  # for the list of models
_REFUSED = (400, 422)  # a body that the server does not take
_ADVICE = "; check the address, and that a server runs there"
_LOCKED = (401, 403)
_PROBE_OUTPUT_TOKENS = 2
_PROBE_WORDS = (8, 40)  # two lengths tell the tokens of a word from the tokens around the prompt


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card] = []


async def find_model(client: httpx.AsyncClient, spec: LoadSpec) -> str:
    """The model to ask for. Raises ConfigError when nobody answers, or there is none."""
    base = base_url(spec)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            response = await client.get("/v1/models")
    except TimeoutError as error:
        raise ConfigError(f"the server at {base} accepts connections but does not answer; is it busy?") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = "; give the certificate with --ca-file" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
        raise ConfigError(f"no server answers at {base}: {error or type(error).__name__}{advice or _ADVICE}") from error
    if response.status_code in _LOCKED:
        raise ConfigError(_locked(spec))
    if spec.model:
        return spec.model
    try:
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=_Models).data[0].id
    except (httpx.HTTPError, msgspec.DecodeError, IndexError) as error:
        raise ConfigError(
            f"{base}/v1/models names no model (HTTP {response.status_code}): check the address, or give --model"
        ) from error


def _locked(spec: LoadSpec) -> str:
    does = "does not accept this API key: check" if spec.api_key else "wants an API key: give"
    return f"the server at {base_url(spec)} {does} --api-key or BUTTERFLY_API_KEY"


class Prober:
    """Asks for short answers to prompts that no other request has: those from `first_index` on."""

    def __init__(self, client: httpx.AsyncClient, spec: LoadSpec, seed: int, first_index: int) -> None:
        self._client = client
        self._spec = spec
        self._seed = seed
        self._next_index = first_index

    async def agree(self) -> tuple[Dialect, list[str]]:
        """The best dialect that the server takes, and notes on what it does not take. Raises ConfigError."""
        dialect, notes = first_dialect(self._spec), []
        while (asked := await self._ask(dialect)).failure:
            step = relaxed(dialect, asked.failure) if asked.status in _REFUSED else None
            if step is None:
                raise ConfigError(self._refusal(asked))
            dialect, note = step
            notes.append(note)
        if dialect.prompts == "text":
            dialect = await self._calibrated(dialect)
        return dialect, notes

    def _refusal(self, asked: Asked) -> str:
        if asked.status in _LOCKED:
            return _locked(self._spec)
        return f"the server at {base_url(self._spec)} does not answer a first request: {asked.failure}"

    async def _ask(self, dialect: Dialect, text: str = "") -> Asked:
        index = self._next_index
        self._next_index += 1
        spec = self._spec
        prompt = text or make_prompt(spec, dialect, self._seed, index)
        body = request_body(spec, dialect, prompt, _PROBE_OUTPUT_TOKENS)
        asked = await ask(self._client, path_of(spec), body, spec.timeout_s)
        return asked._replace(failure=asked.failure or asked.answer.record(index, 0.0, 0.0, 0).failure)

    async def _calibrated(self, dialect: Dialect) -> Dialect:
        """Learn from the usage of two prompts how many words make how many tokens."""
        num_tokens = []
        for num_words in _PROBE_WORDS:
            asked = await self._ask(dialect, random_text(self._seed, self._next_index, num_words, 0))
            if asked.failure:
                raise ConfigError(self._refusal(asked))
            if not asked.answer.has_usage:
                return dialect
            num_tokens.append(asked.answer.record(0, 0.0, 0.0, 0).num_input_tokens)
        (few, many), (short, long) = _PROBE_WORDS, num_tokens
        tokens_per_word = (long - short) / (many - few)
        if tokens_per_word <= 0:
            return dialect
        return replace(dialect, tokens_per_word=tokens_per_word, overhead_tokens=short - tokens_per_word * few)


def path_of(spec: LoadSpec) -> str:
    return "/v1/chat/completions" if spec.chat else "/v1/completions"
