"""The overlapped loop beside the plain one: two stages on one core each, many streams.

Three questions, answered in one run with both clusters alive and measured in turns, since the machine is noisy:
- throughput of 16 streams of mixed prompt lengths, against one step in flight (bound: twice, for two stages);
- the share of time each stage computes, from the step timings;
- what a 2,000-token prompt does to the time between tokens of the other streams.

`python -m benchmarks.scheduling [MODEL]`; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psutil

from butterfly.config import ClusterConfig
from butterfly.embedded import EmbeddedCluster, embedded_cluster
from butterfly.specs import Request, SamplingSpec

PROMPT_TOKENS = (16, 32, 64, 128, 256, 384)  # mixed, in turn
OUTPUT_TOKENS = 48
LONG_PROMPT_TOKENS = 2000


@dataclass
class Counts:
    """What the streams got while `is_open`."""

    is_open: bool = False
    gaps_s: list[float] = field(default_factory=list)  # between tokens of one stream


class Streams:
    """Readers of one cluster."""

    def __init__(self, cluster: EmbeddedCluster, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._vocab_size = cluster.model.spec.vocab_size
        self._number = 0
        self.counts = Counts()

    def request(self, num_prompt_tokens: int, max_tokens: int) -> Request:
        self._number += 1
        prompt = tuple(self._random.randrange(self._vocab_size) for _ in range(num_prompt_tokens))
        return Request(
            request_id=f"r{self._number}",
            prompt_token_ids=prompt,  # random: nothing to be reused
            max_tokens=max_tokens,
            sampling=SamplingSpec(temperature=0.0),
        )

    async def read(self, request: Request) -> float:
        """Read one answer to its end; return when its first token came."""
        first_s, last_s = 0.0, 0.0
        async for output in await self._cluster.client.submit(request):
            now_s = time.monotonic()
            if self.counts.is_open and last_s and output.token_ids:
                self.counts.gaps_s.append(now_s - last_s)
            first_s, last_s = first_s or now_s, now_s
        return first_s

    async def read_all(self, waiting: Iterator[Request]) -> None:
        """Ask again as soon as the answer is there, until nothing waits."""
        for request in waiting:
            await self.read(request)


@dataclass(frozen=True)
class Snapshot:
    """What a cluster has done since it started."""

    at_s: float
    tokens: float  # that went through the stages: prompts and outputs cost about the same here
    compute_s: dict[str, float]  # by stage
    num_steps: float
    coordinator_s: float  # processor time of this process, readers included

    @classmethod
    def of(cls, cluster: EmbeddedCluster) -> Snapshot:
        text = cluster.metrics.render().decode()

        def values(name: str) -> dict[str, float]:
            found = re.findall(rf'^{name}\{{[a-z]+="([^"]+)"\}} (\S+)$', text, re.M)
            return {label: float(value) for label, value in found}

        steps = re.search(r"^butterfly_step_duration_seconds_count (\S+)$", text, re.M)
        times = psutil.Process().cpu_times()
        return cls(
            at_s=time.monotonic(),
            tokens=sum(values("butterfly_computed_tokens_total").values()),
            compute_s=values("butterfly_stage_compute_seconds_sum"),
            num_steps=float(steps[1]) if steps else 0.0,
            coordinator_s=times.user + times.system,
        )

    def since(self, before: Snapshot) -> dict[str, Any]:
        elapsed_s, num_steps = self.at_s - before.at_s, self.num_steps - before.num_steps
        compute_s = {name: self.compute_s[name] - before.compute_s.get(name, 0.0) for name in self.compute_s}
        return {
            "tokens_per_s": (self.tokens - before.tokens) / elapsed_s,
            "busy": {name: seconds / elapsed_s for name, seconds in compute_s.items()},
            "tokens_per_step": (self.tokens - before.tokens) / num_steps,
            "step_compute_s": sum(compute_s.values()) / num_steps,
            "coordinator_share": (self.coordinator_s - before.coordinator_s) / elapsed_s,
        }


@contextmanager
def started(config: ClusterConfig) -> Iterator[EmbeddedCluster]:
    """A cluster whose workers have one core each."""
    with embedded_cluster(config) as cluster:
        cluster.wait_until_ready()
        pids = [worker.pid for worker in cluster.client.status().workers]
        cores = psutil.Process().cpu_affinity()
        for index, pid in enumerate(pids):
            psutil.Process(pid).cpu_affinity([cores[index % len(cores)]])
        yield cluster


async def measure_load(
    streams: Streams, cluster: EmbeddedCluster, num_streams: int, num_requests: int
) -> dict[str, Any]:
    """What is done, and how busy the stages are, from the first request until the last one has been asked."""
    work = [streams.request(PROMPT_TOKENS[turn % len(PROMPT_TOKENS)], OUTPUT_TOKENS) for turn in range(num_requests)]
    all_asked = asyncio.Event()

    def waiting() -> Iterator[Request]:
        yield from work
        all_asked.set()

    queue = waiting()
    streams.counts = Counts(is_open=True)
    before = Snapshot.of(cluster)
    readers = [asyncio.create_task(streams.read_all(queue)) for _ in range(num_streams)]
    await all_asked.wait()
    figures = Snapshot.of(cluster).since(before)
    streams.counts.is_open = False
    await asyncio.gather(*readers)
    return {**figures, "median_gap_s": statistics.median(streams.counts.gaps_s)}


async def measure_long_prompt(streams: Streams, num_streams: int, seconds: float) -> dict[str, Any]:
    """The median time between tokens of other streams, before and while a long prompt is prefilled."""
    max_tokens = 1500  # so that no other prompt disturbs the comparison
    requests = [streams.request(16, max_tokens) for _ in range(num_streams)]
    streams.counts = Counts()
    readers = [asyncio.create_task(streams.read(request)) for request in requests]
    await asyncio.sleep(seconds / 3)
    streams.counts.is_open = True
    await asyncio.sleep(seconds)
    before = statistics.median(streams.counts.gaps_s)
    streams.counts = Counts()
    long = asyncio.create_task(streams.read(streams.request(LONG_PROMPT_TOKENS, 1)))
    arrived_s = time.monotonic()
    streams.counts.is_open = True
    first_s = await long
    streams.counts.is_open = False
    during = statistics.median(streams.counts.gaps_s)
    await end(readers)
    return {
        "median_gap_before_s": before,
        "median_gap_during_s": during,
        "ratio": during / before,
        "ttft_s": first_s - arrived_s,
    }


async def end(tasks: list[asyncio.Task[None]] | list[asyncio.Task[float]]) -> None:
    """Readers leave; their requests are aborted."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(2)  # until what was under way is over


async def run(clusters: dict[str, EmbeddedCluster], options: argparse.Namespace) -> dict[str, Any]:
    streams = {arm: Streams(cluster, seed=1) for arm, cluster in clusters.items()}
    loads: dict[str, list[dict[str, Any]]] = {arm: [] for arm in clusters}
    for _ in range(options.rounds):
        for arm, cluster in clusters.items():
            figures = await measure_load(streams[arm], cluster, options.streams, options.requests)
            print(f"{arm:>10}: {figures}", flush=True)
            loads[arm].append(figures)
    long_prompts = []
    for _ in range(options.rounds):
        long_prompts.append(await measure_long_prompt(streams["overlapped"], options.readers, options.seconds))
        print(f"long prompt: {long_prompts[-1]}", flush=True)

    def median_rate(arm: str) -> float:
        return float(statistics.median(figures["tokens_per_s"] for figures in loads[arm]))

    return {
        "loads": loads,
        "throughput_ratio": median_rate("overlapped") / median_rate("plain"),
        "bound_ratio": 2.0,
        "long_prompt": long_prompts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48, help="of one measurement of throughput")
    parser.add_argument("--readers", type=int, default=8, help="streams that read while a long prompt arrives")
    parser.add_argument("--seconds", type=float, default=10.0, help="of readers alone, before a long prompt")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    config = ClusterConfig(
        model=options.model, num_workers=2, num_threads=1, context=4096, max_num_sequences=32, target_ttft_s=600.0
    )
    with ExitStack() as stack:
        clusters = {
            "plain": stack.enter_context(started(msgspec.structs.replace(config, num_slots=1))),
            "overlapped": stack.enter_context(started(config)),
        }
        print(json.dumps(asyncio.run(run(clusters, options))))


if __name__ == "__main__":
    main()
