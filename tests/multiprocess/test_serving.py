"""The ends of a served model: signals to the server. Workers that die are in test_faults and test_cluster_life.

Exit codes: 130 after Ctrl-C (SIGINT), 143 after SIGTERM. Whatever happens, no process stays.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.support.product import BUTTERFLY, ENDING_S, MODEL, Server, eventually, session_members


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
