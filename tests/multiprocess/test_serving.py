"""The ends of a served model: signals to the server, and workers that die or fall silent under a stream.

Exit codes: 130 after Ctrl-C (SIGINT), 143 after SIGTERM. Whatever happens, no process stays.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.support.product import BUTTERFLY, ENDING_S, MODEL, Server, eventually, session_members

HEARTBEAT_S = 2.0  # the least that `serve` takes


@contextmanager
def endless_stream(server: Server) -> Iterator[openai.Stream[ChatCompletionChunk]]:
    """An answer that has begun and would go on for minutes."""
    with server.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to a thousand."}],
            max_tokens=3500,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        yield stream
        stream.close()


def read_to_the_error(stream: openai.Stream[ChatCompletionChunk]) -> str:
    """Read on until the server says why it cannot; return that."""
    with pytest.raises(openai.APIError) as caught:
        for _ in stream:
            pass
    return caught.value.message


def expect_refusals(server: Server, reason: str) -> None:
    """Not ready, with the detail; other requests are refused with the same, and the server lives on to say so."""
    ready = httpx.get(f"{server.url}/ready")
    assert ready.status_code == 503
    assert (ready.json()["ready"], ready.json()["phase"]) == (False, "failed")
    assert reason in ready.json()["detail"]
    with server.client() as client, pytest.raises(openai.InternalServerError, match=reason) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.status_code == 503
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert eventually(lambda: reason in server.complaints(), within_s=5)
    assert server.complaints().count("\n") == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_loading_leaves_nothing(signum: signal.Signals, code: int) -> None:
    with Server(workers=2) as server:
        server.wait_loading()
        os.killpg(server.process.pid, signum)
        assert server.wait_gone() == code
        assert server.complaints() == ""


def test_sigterm_during_a_stream_ends_it_and_leaves_nothing() -> None:
    """And a second and third signal do not disturb the ending."""
    with Server(workers=2).wait_ready() as server, endless_stream(server) as stream:
        for _ in range(3):
            os.kill(server.process.pid, signal.SIGTERM)
        assert read_to_the_error(stream) == "the server was stopped"
        assert server.wait_gone() == 143
        assert server.complaints() == ""


def test_ctrl_c_during_generate_leaves_nothing() -> None:
    command = [*BUTTERFLY, "generate", MODEL, "Count to a thousand.", "-n", "3500", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # it is under way, and a pipe gets the text as it comes
        os.killpg(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=ENDING_S)
        assert (process.returncode, complaint) == (130, b"")
        assert eventually(lambda: not session_members(process.pid), within_s=ENDING_S)


def test_killing_the_server_takes_its_workers_along() -> None:
    with Server(workers=2).wait_ready() as server, endless_stream(server):
        workers = server.workers()
        server.process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=ENDING_S)
        assert (len(gone), alive) == (2, [])


def test_killing_the_server_while_it_loads_takes_its_workers_along() -> None:
    with Server(workers=2) as server:
        workers = server.wait_loading()
        server.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=ENDING_S)
        assert alive == []


def test_a_killed_worker_ends_its_streams_by_name() -> None:
    with Server(workers=2).wait_ready() as server:
        with endless_stream(server) as stream:
            metric = 'worker_resident_bytes{worker="worker-1"}'
            assert metric in httpx.get(f"{server.url}/metrics").text
            server.workers()[1].kill()
            reason = "worker worker-1 was killed by signal 9"
            assert reason in read_to_the_error(stream)
        expect_refusals(server, reason)
        assert metric not in httpx.get(f"{server.url}/metrics").text
        server.interrupt()
        assert server.wait_gone() == 130


def test_a_first_stage_killed_under_load_ends_every_stream_by_name() -> None:
    """The next steps have nobody to go to, while results of the last ones still come back."""
    with Server(workers=2).wait_ready() as server, ExitStack() as stack:
        streams = [stack.enter_context(endless_stream(server)) for _ in range(5)]
        server.workers()[0].kill()
        reason = "worker worker-0 was killed by signal 9"
        assert all(reason in read_to_the_error(stream) for stream in streams)
        expect_refusals(server, reason)


def test_a_worker_that_stands_still_ends_its_streams_by_name() -> None:
    with Server("--heartbeat-timeout", str(HEARTBEAT_S), workers=2).wait_ready() as server:
        with endless_stream(server) as stream:
            server.workers()[0].suspend()
            reason = f"worker worker-0 was silent for more than {HEARTBEAT_S:g} s"
            assert reason in read_to_the_error(stream)
        expect_refusals(server, reason)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.wait_gone() == 143
