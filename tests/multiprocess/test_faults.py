"""Workers that die or stand still under real streams: no token is lost, none is another one.

The long form is `python -m benchmarks.faults`.
"""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

import httpx
import openai

from tests.support.greedy_streams import GreedyStreams, greedy_texts, wait_until_computing
from tests.support.open_cluster import prompts
from tests.support.product import MODEL, PATIENCE_S, Server, eventually

READING, LONG = prompts(3), prompts(2, num_words=300)
READING_TOKENS, LONG_TOKENS = 40, 4


class Fault(NamedTuple):
    signum: signal.Signals
    stage: int  # of the plan, by number; the last one if it has fewer


FAULTS_IN_ANSWERS = (Fault(signal.SIGKILL, 0), Fault(signal.SIGSTOP, 1))
FAULTS_IN_PROMPTS = (Fault(signal.SIGKILL, 2), Fault(signal.SIGSTOP, 0))


def wait_until_whole(server: Server) -> int:
    """Until every worker is back, with a stage or on standby; return the epoch."""

    def is_whole() -> bool:
        status = server.status()
        return status.phase == "ready" and all(worker.phase in ("ready", "standby") for worker in status.workers)

    assert eventually(is_whole, PATIENCE_S), server.status().detail
    return server.status().epoch


def strike(server: Server, fault: Fault) -> None:
    status = server.status()
    assert status.plan is not None
    stages = [stage.worker for stage in status.plan.stages]
    victim = stages[min(fault.stage, len(stages) - 1)]
    os.kill(next(worker.pid for worker in status.workers if worker.name == victim), fault.signum)


def test_no_token_is_lost_and_none_is_another_one() -> None:
    options = ("--threads", "1", "--prefix-reuse", "off", "--no-measure", "--context", "1024")
    with Server(*options, workers=3).wait_ready() as server:
        read, computed = greedy_texts(server, READING, READING_TOKENS), greedy_texts(server, LONG, LONG_TOKENS)
        for fault in FAULTS_IN_ANSWERS:
            epoch = wait_until_whole(server)
            with GreedyStreams(server, READING, READING_TOKENS) as streams:
                streams.wait_until_reading()
                strike(server, fault)
                assert streams.texts() == read, fault
            assert server.status().epoch > epoch, "nobody noticed"
        for fault in FAULTS_IN_PROMPTS:
            epoch = wait_until_whole(server)
            with GreedyStreams(server, LONG, LONG_TOKENS) as streams:
                wait_until_computing(server, len(LONG))
                strike(server, fault)
                assert streams.num_chunks == 0  # else it was no fault in a prompt
                assert streams.texts() == computed, fault
            assert server.status().epoch > epoch, "nobody noticed"
        assert "was killed by signal 9" in server.complaints()
        assert "was silent" in server.complaints()
        assert "Traceback" not in server.complaints()


def test_the_only_worker_ends_its_streams_by_name_and_serves_again() -> None:
    reason = "worker worker-0 was killed by signal 9"
    with Server("--no-measure", workers=1).wait_ready() as server:
        before = greedy_texts(server, READING, 8)
        with GreedyStreams(server, READING, 2000) as streams:
            streams.wait_until_reading()
            server.workers()[0].kill()
            failures = streams.failures()
        assert [reason in str(failure) for failure in failures] == [True] * len(READING)
        refusal = refused(server)
        assert refusal is None or (refusal.startswith("503: ") and reason in refusal)
        assert eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 200, PATIENCE_S)
        assert greedy_texts(server, READING, 8) == before


def refused(server: Server) -> str | None:
    """Why a request is refused with 503 now; None when it is answered."""
    with server.client() as client:
        try:
            client.completions.create(model=MODEL, prompt="Once", max_tokens=1)
        except openai.InternalServerError as error:
            return f"{error.status_code}: {error.message}"
    return None
