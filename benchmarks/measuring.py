"""One load on one server: what its clients saw, what went over the links, what its stages say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import psutil

from benchmarks.arms import Server
from benchmarks.lab import Lab
from benchmarks.record import Run
from benchmarks.scenarios import LoadShape
from benchmarks.server_metrics import Look, Usage, scrape, usage_between
from butterfly.loadgen import LoadReport

LOAD_TIMEOUT_S = 900.0
PROBE_OUTPUT_TOKENS = 2  # the load generator asks one such question to learn the server's dialect
_STOP_S = 5.0


class MeasurementError(Exception):
    """A load did not end as it should have; one line."""


@dataclass(frozen=True)
class Subject:
    """A running server with what is needed to watch it."""

    name: str
    server: Server
    lab: Lab | None
    nodes: frozenset[str]  # of the lab, that are its own
    has_metrics: bool  # Butterfly's, at /metrics


class Stages(NamedTuple):
    """What the stages of a Butterfly server did while a load, its warm-up and its probe ran."""

    usage: Usage
    duration_s: float

    @property
    def num_tokens(self) -> int:
        return self.usage.num_prompt_tokens + self.usage.num_output_tokens


def measure(subject: Subject, load: LoadShape, seed: int) -> tuple[Run, tuple[str, ...]]:
    """Return the measurement and the load generator's notes. Raises MeasurementError or ServerFailedError."""
    before, bytes_before = _look(subject), _link_bytes(subject)
    report = run_load(subject.server, load, seed)
    bytes_after, after = _link_bytes(subject), _look(subject)
    sent = {path: count - bytes_before.get(path, 0) for path, count in bytes_after.items()}
    stages = Stages(usage_between(before, after), after.at_s - before.at_s) if before and after else None
    return run_of(load, report, sent, stages), report.notes


def run_load(server: Server, load: LoadShape, seed: int) -> LoadReport:
    """Run `butterfly bench` beside the server, in the first node's network and on any core."""
    argv = load_command(server.url, load, seed)
    if server.node is not None:
        argv = server.node.command(argv, pinned=False)
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    with process:
        try:
            output, errors = process.communicate(timeout=LOAD_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"{load.name}: not done after {LOAD_TIMEOUT_S:.0f} s") from error
        finally:
            _end(process)
    if process.returncode:
        raise MeasurementError(f"{load.name}: {last_line(errors) or f'exit status {process.returncode}'}")
    try:
        report = msgspec.json.decode(output.strip().splitlines()[-1], type=LoadReport)
    except (msgspec.DecodeError, IndexError) as error:
        raise MeasurementError(f"{load.name}: the load generator's answer is not a report: {error}") from error
    if report.num_failed or not report.is_complete:
        raise MeasurementError(f"{load.name}: {report.num_failed} requests failed: {report.failures}")
    return report


def load_command(url: str, load: LoadShape, seed: int) -> list[str]:
    argv = [sys.executable, "-m", "butterfly", "bench", url, "--json", "--seed", str(seed)]
    argv += ["--requests", str(load.requests), "--warmup", str(load.warmup), "--concurrency", str(load.concurrency)]
    return [*argv, "--input-tokens", str(load.input_tokens), "--output-tokens", str(load.output_tokens)]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def run_of(load: LoadShape, report: LoadReport, link_bytes: Mapping[str, int], stages: Stages | None) -> Run:
    """Bytes and stages were counted over warm-up and probe too; they are scaled by the tokens."""
    if report.ttft_s is None:
        raise MeasurementError(f"{load.name}: no request had a first token")
    busy = {}
    if stages and stages.num_tokens:
        num_computed = report.num_input_tokens + report.num_output_tokens - report.num_completed  # not the last ones
        scale = stages.duration_s / report.duration_s * num_computed / stages.num_tokens
        busy = {worker: share * scale for worker, share in stages.usage.busy_shares.items()}
    return Run(
        ttft_s=report.ttft_s.p50,
        tpot_s=report.tpot_s.p50 if report.tpot_s else None,
        output_tokens_per_s=report.output_tokens_per_s,
        requests=report.num_completed,
        input_tokens=report.num_input_tokens,
        output_tokens=report.num_output_tokens,
        link_bytes_per_token={path: count / tokens_sent(load) for path, count in link_bytes.items() if count},
        stage_busy=busy,
        hop_s=stages.usage.software_s_per_hop if stages and stages.usage.num_steps else None,
    )


def tokens_sent(load: LoadShape) -> int:
    """Prompt and output tokens of all that one load asks for, warm-up and probe included."""
    per_request = load.input_tokens + load.output_tokens
    return (load.requests + load.warmup) * per_request + load.input_tokens + PROBE_OUTPUT_TOKENS


def _link_bytes(subject: Subject) -> dict[str, int]:
    """Bytes on the wire so far between the subject's own nodes."""
    if subject.lab is None:
        return {}
    return {
        f"{sender} -> {receiver}": traffic.num_bytes
        for (sender, receiver), traffic in subject.lab.traffic().items()
        if {sender, receiver} <= subject.nodes
    }


def _look(subject: Subject) -> Look | None:
    return scrape(subject.server) if subject.has_metrics else None


def memory_bytes(pids: Mapping[str, int]) -> dict[str, int]:
    """Resident bytes of each process with those that it started, but for those that are counted by themselves."""
    named = set(pids.values())
    found = {}
    for name, pid in pids.items():
        try:
            process = psutil.Process(pid)
            own = [process, *(child for child in process.children(recursive=True) if child.pid not in named)]
        except psutil.NoSuchProcess:
            continue
        found[name] = sum(_resident_bytes(member) for member in own)
    return found


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def in_order(subjects: Sequence[Subject], turn: int) -> list[Subject]:
    """Each round begins with another arm: what an arm leaves behind meets each of the others."""
    start = turn % len(subjects)
    return [*subjects[start:], *subjects[:start]]
