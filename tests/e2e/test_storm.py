"""Five hundred requests, many of whose clients leave at any moment: nothing lost, nothing leaked, no 500.

The KV cache is too small for all that runs, so requests are preempted on the way.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import httpx
import openai
import pytest

from tests.support.product import Server, eventually

NUM_REQUESTS = 500
NUM_CLIENTS = 24
QUESTIONS = ("Hi", "Count to ten.", "Why is the sky blue?", "Name three rivers in Europe and where they end.")


async def one_request(client: openai.AsyncOpenAI, number: int, chance: random.Random) -> str:
    """Ask, and perhaps leave: before the first byte, in mid-stream, or while the whole answer is made."""
    question, leaves_after = chance.choice(QUESTIONS), chance.choice((None, None, 0, 1, 3))
    max_tokens, is_streamed = chance.randrange(1, 12), chance.random() < 0.7
    fields: Any = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "seed": number,
        "stream": is_streamed,
        "extra_body": {"priority": chance.randrange(3), "ignore_eos": True},
    }
    call: Any = client.chat.completions.create(**fields)
    if not is_streamed:
        if leaves_after is None:
            answer = await call
            assert answer.usage.completion_tokens == max_tokens
            return "whole"
        task = asyncio.ensure_future(call)
        await asyncio.wait([task], timeout=chance.random() / 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "left"
    num_chunks, reason = 0, None
    async with await call as stream:
        async for chunk in stream:
            num_chunks += 1
            reason = chunk.choices[0].finish_reason
            if leaves_after is not None and num_chunks > leaves_after:
                return "left"
    assert reason == "length"
    return "streamed"


async def storm(url: str) -> Counter[str]:
    """Run all requests through a few dozen clients at a time; return how they ended."""
    ends: Counter[str] = Counter()
    numbers = iter(range(NUM_REQUESTS))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:

        async def work(worker: int) -> None:
            chance = random.Random(worker)
            for number in numbers:
                ends[await one_request(client, number, chance)] += 1

        await asyncio.gather(*(work(worker) for worker in range(NUM_CLIENTS)))
    return ends


@pytest.mark.timeout(600)
def test_five_hundred_requests_with_clients_that_leave() -> None:
    options = ("--max-sequences", "16", "--kv-tokens", "640", "--context", "512", "--target-ttft", "600")
    with Server(*options, workers=2).wait_ready() as server:
        ends = asyncio.run(storm(server.url))
        assert ends.total() == NUM_REQUESTS
        assert min(ends["left"], ends["whole"], ends["streamed"]) > 50
        assert eventually(lambda: server.status().running_requests == 0, within_s=10)
        assert eventually(lambda: server.status().kv_used_tokens == 0, within_s=5)
        status = server.status()
        assert (status.phase, status.waiting_requests) == ("ready", 0)
        metrics = httpx.get(f"{server.url}/metrics").text
        counted = {
            line.split('"')[1]: float(line.rsplit(" ", 1)[1])
            for line in metrics.splitlines()
            if line.startswith("butterfly_requests_total{")
        }
        assert counted.get("error", 0) == 0
        assert counted["length"] >= ends["whole"] + ends["streamed"]
        assert sum(counted.values()) <= NUM_REQUESTS  # one that leaves before it is accepted is none
        assert "books do not balance" not in server.complaints()
        server.interrupt()
        assert server.wait_gone() == 130
        assert server.complaints() == ""
