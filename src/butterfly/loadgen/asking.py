"""One request over HTTP, from its bytes to the end of its stream."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import NamedTuple

import httpx

from butterfly.errors import ConfigError
from butterfly.loadgen.answers import AnswerReader
from butterfly.loadgen.chunks import error_text
from butterfly.loadgen.spec import LoadSpec

_KEEP_ALIVE_S = 2.0  # shorter than the 5 s of uvicorn and cpp-httplib: they must not close what we are about to use


class Asked(NamedTuple):
    """What came of a request. Times are of `time.perf_counter`."""

    answer: AnswerReader
    sent_s: float
    status: int = 0  # of HTTP; 0: there was no answer at all
    failure: str = ""
    is_unheard: bool = False  # the connection ended before the first byte of an answer


def base_url(spec: LoadSpec) -> str:
    """The address without /v1."""
    return spec.url.rstrip("/").removesuffix("/v1")


def open_client(spec: LoadSpec, trust: ssl.SSLContext | None) -> httpx.AsyncClient:
    """As many connections as there are requests at a time. Raises ConfigError for an address that is none."""
    headers = {"accept-encoding": "identity"}  # the bytes are read as they come
    if spec.api_key:
        headers["authorization"] = f"Bearer {spec.api_key}"
    try:
        return httpx.AsyncClient(
            base_url=base_url(spec),
            headers=headers,
            verify=True if trust is None else trust,
            timeout=None,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE_S),
            trust_env=False,  # no proxy
        )
    except httpx.InvalidURL as error:
        raise ConfigError(f"{spec.url} is not an address: {error}") from error


async def ask(client: httpx.AsyncClient, path: str, body: bytes, timeout_s: float) -> Asked:
    """Send a request and read its stream to the end. Failures are returned, not raised.

    A kept connection may have been closed by the server just when the request was sent: it is then sent again, once,
    and the time that this took counts.
    """
    sent_s = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            asked = await _attempt(client, path, body, sent_s)
            return await _attempt(client, path, body, sent_s) if asked.is_unheard else asked
    except TimeoutError:
        return Asked(AnswerReader(), sent_s, failure=f"no end within {timeout_s:g} s")


async def _attempt(client: httpx.AsyncClient, path: str, body: bytes, sent_s: float) -> Asked:
    answer, status = AnswerReader(), 0
    headers = {"content-type": "application/json"}
    try:
        async with client.stream("POST", path, content=body, headers=headers) as response:
            status = response.status_code
            if status != httpx.codes.OK:
                return Asked(answer, sent_s, status, f"HTTP {status}: {error_text(await response.aread())}")
            kind = response.headers.get("content-type", "nothing")
            if not kind.startswith("text/event-stream"):
                return Asked(answer, sent_s, status, f"the answer is no stream of events but {kind}")
            async for piece in response.aiter_raw():
                answer.feed(piece, time.perf_counter())
    except httpx.HTTPError as error:
        is_unheard = status == 0 and isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError))
        return Asked(answer, sent_s, status, f"{type(error).__name__}: {error}".removesuffix(": "), is_unheard)
    return Asked(answer, sent_s, status)
