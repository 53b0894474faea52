"""A cluster on an emulated network (or on loopback, without root), one fault after another, and what came of each."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.faults.record import FaultKind, FaultRecord
from benchmarks.lab import Lab, Link, Node, NodeConfig
from benchmarks.processes import ServerFailedError, fetch, running, wait_until_ready
from butterfly.specs import ClusterStatus

_STREAMS = Path(__file__).with_name("streams.py")
_LAN = Link(1e9, 0.000125)
_PORT = 8000
_START_S, _SETTLE_S, _STREAM_S = 120.0, 90.0, 180.0
_LOOK_S = 0.1
NUM_STAGES = 3

_TEXT = "the butterfly flew over a quiet garden while children watched and rain began to fall on old stones"


class Round(NamedTuple):
    """What is to happen."""

    kind: FaultKind
    prompts: tuple[int, ...]  # numbers of prompts
    victim: int  # which stage of the plan
    moment: float  # share of the undisturbed time of such a load


class Stream(NamedTuple):
    text: str
    error: str
    times_s: Sequence[float]


class Cluster:
    """A running server and how to hurt it."""

    def __init__(self, url: str, front: Node | None, lab: Lab | None, max_tokens: int) -> None:
        self.url, self._front, self._lab, self.max_tokens = url, front, lab, max_tokens
        self.model = "smollm2"

    def status(self) -> ClusterStatus:
        return msgspec.json.decode(fetch(f"{self.url}/status", self._front), type=ClusterStatus)

    def ask(self, prompts: Sequence[str], meanwhile: Callable[[], None]) -> list[Stream]:
        """Run these streams at once, and `meanwhile` beside them. Raises ServerFailedError when they do not end."""
        argv = [sys.executable, str(_STREAMS)]
        command = argv if self._front is None else self._front.command(argv, pinned=False)
        job = {"url": self.url, "model": self.model, "prompts": list(prompts), "max_tokens": self.max_tokens}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            disturbing = threading.Thread(target=meanwhile)
            disturbing.start()
            try:
                out, _ = client.communicate(json.dumps(job).encode() + b"\n", timeout=_STREAM_S)
            except subprocess.TimeoutExpired as late:
                client.kill()
                raise ServerFailedError(f"streams did not end within {_STREAM_S:g} s") from late
            finally:
                disturbing.join()
        answers: list[dict[str, Any]] = sorted(map(json.loads, out.splitlines()), key=lambda one: one["number"])
        return [Stream(one["text"], one["error"], one["times_s"]) for one in answers]

    def undisturbed(self, prompt: str) -> str:
        """The text that this prompt has when nothing happens. Raises ServerFailedError where something did."""
        (stream,) = self.ask([prompt], lambda: None)
        if stream.error or (moves := self.status().recoveries):
            raise ServerFailedError(f"disturbed before any fault: {stream.error or moves[-1].cause}")
        return stream.text

    def strike(self, kind: FaultKind, worker: str) -> None:
        pid = next(one.pid for one in self.status().workers if one.name == worker)
        if kind == "cut":
            assert self._lab is not None
            self._lab.cut(worker.replace("worker-", "n"))
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)

    def mend(self, kind: FaultKind, worker: str) -> None:
        if kind == "cut":
            assert self._lab is not None
            self._lab.restore(worker.replace("worker-", "n"))

    def wait_until_whole(self) -> None:
        """Until every worker is back, with a stage or on standby. Raises ServerFailedError."""
        deadline_s = time.monotonic() + _SETTLE_S
        while True:
            status = self.status()
            if status.phase == "ready" and all(one.phase in ("ready", "standby") for one in status.workers):
                return
            if time.monotonic() > deadline_s:
                workers = ", ".join(f"{one.name} {one.phase}" for one in status.workers)
                raise ServerFailedError(f"the cluster is {status.phase} ({status.detail}): {workers}")
            time.sleep(_LOOK_S)


@contextmanager
def cluster(model: str, *, spare: bool, emulated: bool, max_tokens: int, port: int = _PORT) -> Iterator[Cluster]:
    """Serve over three workers, one for each third of the layers, and perhaps a fourth on standby."""
    num_workers = NUM_STAGES + spare
    options = ["--workers", str(num_workers), "--threads", "1", "--no-api-key", "--context", "1024"]
    options += ["--best-workers", "--prefix-reuse", "off", "--max-sequences", "8"]
    options += pins() if spare else ["--all-workers"]
    if not emulated:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with _serving(model, options, None, "127.0.0.1", port) as url:
            yield Cluster(url, None, None, max_tokens)
        return
    configs = [NodeConfig(name, up=_LAN, down=_LAN) for name in ("front", *(f"n{i}" for i in range(num_workers)))]
    with Lab(configs) as lab:
        front = lab.nodes["front"]
        options += ["--listen", front.address]
        for number in range(num_workers):
            options += ["--start-with", shlex.join(lab.nodes[f"n{number}"].command([]))]
        with _serving(model, options, front, front.address, port) as url:
            yield Cluster(url, front, lab, max_tokens)


@contextmanager
def _serving(model: str, options: Sequence[str], node: Node | None, host: str, port: int) -> Iterator[str]:
    argv = [sys.executable, "-m", "butterfly", "serve", model, "--host", host, "--port", str(port), *options]
    with running("butterfly serve", argv, node) as server:
        url = f"http://{host}:{port}"
        wait_until_ready(server, f"{url}/ready", _START_S)
        yield url


def pins(num_layers: int = 30) -> list[str]:
    share = num_layers // NUM_STAGES
    ends = [(index * share, num_layers if index == NUM_STAGES - 1 else (index + 1) * share) for index in range(3)]
    return [word for index, (a, b) in enumerate(ends) for word in ("--layers", f"worker-{index}={a}:{b}")]


def make_prompts(count: int) -> list[str]:
    """Of 20 to 400 words, so that faults meet prompts and answers."""
    chance = random.Random(7)
    words = _TEXT.split()
    return [" ".join(chance.choices(words, k=chance.choice((20, 60, 150, 400)))) for _ in range(count)]


def make_round(chance: random.Random, kinds: Sequence[FaultKind], num_prompts: int) -> Round:
    prompts = tuple(chance.sample(range(num_prompts), chance.randint(1, 8)))
    return Round(chance.choice(kinds), prompts, chance.randrange(NUM_STAGES), chance.random())


def run_round(
    on: Cluster, wanted: Round, prompts: Sequence[str], expected: Sequence[str], alone_s: float
) -> FaultRecord:
    """One fault. Raises ServerFailedError when the cluster does not come back."""
    status = on.status()
    assert status.plan is not None
    stages = [stage.worker for stage in status.plan.stages]
    victim = stages[min(wanted.victim, len(stages) - 1)]
    struck_s: list[float] = []

    def disturb() -> None:
        time.sleep(wanted.moment * alone_s * len(wanted.prompts) ** 0.5)
        struck_s.append(time.monotonic())
        on.strike(wanted.kind, victim)

    streams = on.ask([prompts[number] for number in wanted.prompts], disturb)
    moves = [move for move in on.status().recoveries if move.noticed_s >= struck_s[0]]
    on.mend(wanted.kind, victim)
    flips = [n for n, one in zip(wanted.prompts, streams, strict=True) if not one.error and one.text != expected[n]]
    errors = [one.error for one in streams if one.error]
    fault = FaultRecord(
        kind=wanted.kind,
        worker=victim,
        phase=_phase(streams, struck_s[0]),
        num_streams=len(streams),
        has_spare=len(status.workers) > NUM_STAGES,
        num_flips=len(flips),
        num_errors=len(errors),
        note=errors[0] if errors else f"prompt {flips[0]} changed" if flips else "",
    )
    if not moves:  # it was over before anybody noticed
        return fault
    move = moves[0]
    planned_s, loaded_s = move.planned_s, move.loaded_s
    if planned_s is None or loaded_s is None:
        return msgspec.structs.replace(fault, detection_s=move.noticed_s - struck_s[0])
    next_s = [min(when for when in one.times_s if when > loaded_s) for one in streams if one.times_s[-1] > loaded_s]
    return msgspec.structs.replace(
        fault,
        pauses_s=tuple(when - struck_s[0] for when in next_s),
        later_pause_s=_longest_gap_s(streams, loaded_s),
        detection_s=move.noticed_s - struck_s[0],
        planning_s=planned_s - move.noticed_s,
        loading_s=loaded_s - planned_s,
        prefill_s=min(next_s) - loaded_s if next_s else None,
    )


def _phase(streams: Sequence[Stream], struck_s: float) -> Any:
    """What most of the streams that had not ended were doing."""
    open_streams = [one for one in streams if one.times_s and one.times_s[-1] > struck_s]
    if not open_streams:
        return "idle"
    waiting = sum(one.times_s[0] > struck_s for one in open_streams)
    return "prefill" if 2 * waiting > len(open_streams) else "decode"


def _longest_gap_s(streams: Sequence[Stream], since_s: float) -> float | None:
    """The longest time between two tokens of a stream that both came after that."""
    after = ([when for when in one.times_s if when > since_s] for one in streams)
    return max((b - a for times in after for a, b in pairwise(times)), default=None)
