"""The clients, as a process of their own that can run inside a node's network: streams in, what came and when out.

Reads one JSON line `{"url", "model", "prompts", "max_tokens"}` and writes one JSON line for each stream that ends:
number, text, finish reason or error, and the times (monotonic clock of the machine, seconds) at which tokens came.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import httpx

_TIMEOUT_S = 120.0  # of a silence: a pause is to be measured, not to be cut short


async def _stream(client: httpx.AsyncClient, job: dict[str, Any], number: int, prompt: str) -> dict[str, Any]:
    body = {
        "model": job["model"],
        "prompt": prompt,
        "max_tokens": job["max_tokens"],
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    text, times_s, reason, error = "", [], "", ""
    try:
        async with client.stream("POST", f"{job['url']}/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                error = (await answer.aread()).decode(errors="replace")[:500]
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    error = str(chunk["error"])[:500]
                for choice in chunk.get("choices", ()):
                    text += choice["text"]
                    times_s.append(time.monotonic())
                    reason = choice["finish_reason"] or reason
    except httpx.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    return {"number": number, "text": text, "reason": reason, "error": error, "times_s": times_s}


async def _run(job: dict[str, Any]) -> None:
    limits = httpx.Limits(max_connections=len(job["prompts"]))
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits) as client:
        streams = [_stream(client, job, number, prompt) for number, prompt in enumerate(job["prompts"])]
        for done in asyncio.as_completed(streams):
            print(json.dumps(await done), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(json.loads(sys.stdin.readline())))
