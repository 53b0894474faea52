"""A server that answers by a script: known counts of tokens and chunks, known refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

OVERHEAD_TOKENS = 5  # of its chat template
TOKENS_PER_WORD = 2


@dataclass
class Script:
    """How the server behaves. Calls are numbered from 0, those before the measured ones included."""

    refused_fields: frozenset[str] = frozenset()
    takes_token_ids: bool = True
    tells_usage: bool = True
    tokens_per_chunk: int = 1
    statuses: dict[int, int] = field(default_factory=dict)  # of calls that get an error instead of an answer
    broken_calls: frozenset[int] = frozenset()  # that end in the middle
    hanging_from: int | None = None  # calls from this one on never end
    key: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0

    @property
    def prompts(self) -> list[Any]:
        return [body["prompt"] for body in self.bodies]


def scripted_app(script: Script) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if script.key and request.headers.get("authorization") != f"Bearer {script.key}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        return JSONResponse({"data": [{"id": "scripted", "object": "model"}]})

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        call = len(script.bodies)
        script.bodies.append(body)
        refusal = _refusal(script, body)
        if refusal:
            return JSONResponse({"error": {"message": refusal}}, 400)
        if call in script.statuses:
            return JSONResponse({"error": {"message": "not now"}}, script.statuses[call])
        return StreamingResponse(_stream(script, body, call), media_type="text/event-stream")

    return app


def _refusal(script: Script, body: dict[str, Any]) -> str:
    for name in sorted(script.refused_fields & body.keys()):
        return f"unrecognized request argument: {name}"
    if not script.takes_token_ids and isinstance(body.get("prompt"), list):
        return "prompt: must be a text"
    return ""


def _num_input_tokens(body: dict[str, Any]) -> int:
    if "messages" in body:
        return OVERHEAD_TOKENS + TOKENS_PER_WORD * len(body["messages"][0]["content"].split())
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else TOKENS_PER_WORD * len(prompt.split())


async def _stream(script: Script, body: dict[str, Any], call: int) -> AsyncIterator[bytes]:
    script.num_open += 1
    script.most_open = max(script.most_open, script.num_open)
    try:
        async for chunk in _chunks(script, body, call):
            yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        if call not in script.broken_calls:
            yield b"data: [DONE]\n\n"
    finally:
        script.num_open -= 1


async def _chunks(script: Script, body: dict[str, Any], call: int) -> AsyncIterator[dict[str, Any]]:
    def choice(text: str, reason: str | None) -> dict[str, Any]:
        content = {"delta": {"content": text}} if "messages" in body else {"text": text}
        return {"choices": [{"index": 0, **content, "finish_reason": reason}]}

    if "messages" in body:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for start in range(0, body["max_tokens"], script.tokens_per_chunk):
        yield choice("ab"[start % 2], None)
        await asyncio.sleep(0)
        if call in script.broken_calls:
            return
    if script.hanging_from is not None and call >= script.hanging_from:
        await asyncio.Event().wait()
    yield choice("", "length")
    if script.tells_usage and "stream_options" in body:
        num_input = _num_input_tokens(body)
        yield {"choices": [], "usage": {"prompt_tokens": num_input, "completion_tokens": body["max_tokens"]}}
