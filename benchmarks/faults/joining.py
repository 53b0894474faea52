"""A second node joins while eight streams run: tokens per second before, while it joins, after, and of the next eight.

The move to the two nodes comes when it pays, which may be after the first streams.
`python -m benchmarks.faults.joining`: one worker on core 0 serves; a worker on core 1 joins by its line. The last line
on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.bench import terminate
from benchmarks.faults.running import Cluster, Stream, make_prompts
from benchmarks.processes import running, wait_until_ready
from butterfly.specs import ClusterStatus

_NUM_STREAMS, _PORT, _DOOR, _START_S = 8, 8079, 7779, 120.0
_BEFORE_S = 15.0
_MOVE_S = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.joining", description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=int, default=200, help="of each stream")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminate)
    with tempfile.TemporaryDirectory(prefix="butterfly-joining-") as folder:
        environment = {**os.environ, "BUTTERFLY_STATE": str(Path(folder) / "server")}
        argv = [*_BUTTERFLY, "serve", options.model, "--workers", "1", "--threads", "1", "--start-with", "taskset -c 0"]
        argv += ["--listen", f"127.0.0.1:{_DOOR}", "--port", str(_PORT), "--objective", "throughput", "--no-api-key"]
        argv += ["--max-sequences", str(_NUM_STREAMS), "--context", "1024", "--prefix-reuse", "off"]
        with running("butterfly serve", argv, None, environment) as server:
            url = f"http://127.0.0.1:{_PORT}"
            wait_until_ready(server, f"{url}/ready", _START_S)
            server.output.seek(0)
            line = next(word.strip("'") for word in server.output.read().decode().split() if "butterfly://" in word)
            report = _measure(Cluster(url, None, None, options.max_tokens), line, Path(folder))
    print(json.dumps(report))
    return 0 if report["num_changed"] == 0 else 1


_BUTTERFLY = [sys.executable, "-m", "butterfly"]


def _measure(on: Cluster, line: str, folder: Path) -> dict[str, float | int | str]:
    prompts = make_prompts(_NUM_STREAMS)
    alone = on.ask(prompts, lambda: None)
    expected = [stream.text for stream in alone]
    alone_s = sorted(when for stream in alone for when in stream.times_s)
    environment = {**os.environ, "BUTTERFLY_JOIN": line, "BUTTERFLY_STATE": str(folder / "worker")}
    argv = ["taskset", "-c", "1", *_BUTTERFLY, "worker", "--name", "newcomer", "--threads", "1", "--memory", "1G"]
    joined: list[subprocess.Popen[bytes]] = []
    times_s: list[float] = []

    def join() -> None:
        time.sleep(_BEFORE_S)
        times_s.append(time.monotonic())
        joined.append(subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and not _is_planned_for(on.status()):
            time.sleep(0.1)
        times_s.append(time.monotonic())

    try:
        streams = on.ask(prompts, join)
        came_s = sorted(when for stream in streams for when in stream.times_s)
        started_s, ready_s, end_s = times_s[0], times_s[1], came_s[-1]
        num_moves_meanwhile = len(on.status().recoveries)
        _wait_for_layers(on)
        status = on.status()
        again = on.ask(prompts, lambda: None)
        again_s = sorted(when for stream in again for when in stream.times_s)
    finally:
        for process in joined:
            process.terminate()
            process.wait()

    def rate(since_s: float, until_s: float) -> float:
        return sum(since_s < when <= until_s for when in came_s) / max(until_s - since_s, 1e-9)

    def texts_changed(these: Sequence[Stream]) -> int:
        return sum(one.text != text for one, text in zip(these, expected, strict=True))

    pause_s = max((b - a for stream in streams for a, b in _gaps(stream.times_s, started_s)), default=0.0)
    return {
        "before_tokens_per_s": rate(came_s[0], started_s),
        "while_joining_tokens_per_s": rate(started_s, ready_s),
        "after_tokens_per_s": rate(ready_s, end_s),
        "joining_s": ready_s - started_s,
        "longest_pause_s": pause_s,
        "moved_during_the_streams": num_moves_meanwhile,
        "alone_tokens_per_s": len(alone_s) / (alone_s[-1] - alone_s[0]),
        "together_tokens_per_s": len(again_s) / (again_s[-1] - again_s[0]),
        "num_changed": texts_changed(streams) + texts_changed(again),
        "num_failed": sum(bool(one.error) for one in (*streams, *again)),
        "cause": status.recoveries[-1].cause if status.recoveries else status.detail,
    }


def _gaps(times_s: Sequence[float], since_s: float) -> list[tuple[float, float]]:
    after = [when for when in times_s if when > since_s]
    return list(pairwise(after))


def _is_planned_for(status: ClusterStatus) -> bool:
    """It waits for the moment to move, or has layers."""
    return status.phase == "ready" and any(
        one.name == "newcomer" and one.phase in ("standby", "ready") for one in status.workers
    )


def _wait_for_layers(on: Cluster) -> None:
    """At most as long as a start; the report says what came of it."""
    deadline_s = time.monotonic() + _MOVE_S
    while time.monotonic() < deadline_s:
        status = on.status()
        if status.phase == "ready" and any(one.name == "newcomer" and one.end > one.start for one in status.workers):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(main())
