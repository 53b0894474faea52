"""Joining, leaving and coming back, with the real commands, while real clients read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from butterfly.models.packages import packaged_file
from tests.support.greedy_streams import GreedyStreams, StreamError, greedy_texts
from tests.support.open_cluster import GUEST_KEY, JoinedWorker, OpenServer, prompts
from tests.support.product import ENDING_S, MODEL, PATIENCE_S, eventually

NUM_LAYERS = 30
CUT = 20  # the first worker holds layers [0, CUT) and the embedding, the other one the rest
FIRST, SECOND = "near", "far"
TOKENS, LONG = 40, 250


def can_hide_folders() -> bool:
    """Whether a process of ours can be given a view of the file system of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    hiding = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(hiding, capture_output=True, timeout=PATIENCE_S).returncode == 0


@pytest.fixture(scope="class")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenServer]:
    options = ("--objective", "throughput", "--context", "1024")
    with OpenServer(tmp_path_factory.mktemp("server"), *options, workers=1) as server:
        yield server.wait_open().wait_ready()


def is_settled(server: OpenServer, name: str) -> bool:
    """Whether the planner has said what this worker is good for."""
    worker = server.worker(name)
    return server.status().phase == "ready" and worker is not None and worker.phase in ("ready", "standby")


class TestOneMore:
    """A server with a worker of its own, and one that comes and goes."""

    def test_a_newcomer_disturbs_no_stream_and_neither_does_its_leaving(
        self, server: OpenServer, tmp_path: Path
    ) -> None:
        undisturbed = greedy_texts(server, prompts(4), TOKENS)
        with JoinedWorker("guest", tmp_path / "guest", server.line) as guest:
            while not is_settled(server, "guest"):  # all through its joining, somebody reads
                assert greedy_texts(server, prompts(4), TOKENS) == undisturbed
            with GreedyStreams(server, prompts(4), TOKENS) as streams:
                streams.wait_until_reading()
                answer = server.drain("guest")
                assert (answer.status_code, answer.json()) == (202, {"worker": "guest"}), answer.text
                assert guest.process.wait(PATIENCE_S) == 0, guest.log()
                assert eventually(lambda: server.worker("guest") is None, ENDING_S)
                assert streams.texts() == undisturbed
        assert server.stages() == ["worker-0"]

    def test_the_last_one_may_not_leave(self, server: OpenServer) -> None:
        answer = server.drain("worker-0")
        assert answer.status_code == 409
        refusal = "worker-0 is the only worker: another must join before it can leave"
        assert answer.json()["error"]["message"] == refusal
        assert greedy_texts(server, prompts(1), 4)

    def test_who_is_not_there_cannot_leave(self, server: OpenServer) -> None:
        answer = server.drain("nobody")
        assert answer.status_code == 400
        assert "there are: worker-0" in answer.json()["error"]["message"]

    def test_only_the_administrator_may_send_away(self, server: OpenServer) -> None:
        assert server.drain("worker-0", key=GUEST_KEY).status_code == 403
        assert server.drain("worker-0", key="no-key-at-all").status_code == 401
        assert server.drain("worker-0", content_type="text/plain").status_code == 403  # what a form of a page can send
        assert server.stages() == ["worker-0"]


def test_who_is_just_joining_saves_the_streams_of_a_lost_worker(tmp_path: Path) -> None:
    """Requests are held until the newcomer is measured, since nothing fits without it."""
    with (
        OpenServer(tmp_path / "server", "--context", "1024", workers=1) as server,
        JoinedWorker("guest", tmp_path / "guest", server.wait_open().line),
    ):
        server.wait_ready()
        with GreedyStreams(server, prompts(2), LONG) as streams:
            streams.wait_until_reading()
            assert eventually(lambda: server.worker("guest") is not None, PATIENCE_S)
            lost = server.worker("worker-0")
            assert lost is not None
            assert streams.is_running
            os.kill(lost.pid, signal.SIGKILL)
            texts = streams.texts()
        assert "worker-0 was killed" in server.status().recoveries[0].cause
        assert greedy_texts(server, prompts(2), LONG) == texts


class Together(NamedTuple):
    """Two workers, each needed: none holds all layers."""

    server: OpenServer
    near: JoinedWorker
    far: JoinedWorker
    is_far_blind: bool  # whether it sees no file of the model


PINS = ("--layers", f"{FIRST}=0:{CUT}", "--layers", f"{SECOND}={CUT}:{NUM_LAYERS}")  # so each waits for the other
OPTIONS = (*PINS, "--no-measure", "--context", "1024")


@pytest.fixture
def together(tmp_path: Path) -> Iterator[Together]:
    is_blind = can_hide_folders()
    hidden = str(packaged_file(MODEL).parent)
    hiding = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', hidden) if is_blind else ()
    with ExitStack() as stack:
        server = stack.enter_context(OpenServer(tmp_path / "state", *OPTIONS, workers=0)).wait_open()
        near = stack.enter_context(JoinedWorker(FIRST, tmp_path / FIRST, server.line))
        far = stack.enter_context(JoinedWorker(SECOND, tmp_path / SECOND, server.line, hiding))
        server.wait_ready()
        assert server.stages() == [FIRST, SECOND]
        yield Together(server, near, far, is_blind)


def test_who_comes_back_is_the_same_and_keeps_what_it_has(together: Together) -> None:
    """First a worker is killed and started again, then the server."""
    expected = greedy_texts(together.server, prompts(2), 16)
    if together.is_far_blind:  # only root can hide the model's file from a worker
        check_what_was_fetched(together)
    kept = together.far.cached_files()
    restart_a_worker(together)
    assert together.far.cached_files() == kept  # the same files, as old as they were
    assert greedy_texts(together.server, prompts(2), 16) == expected
    kill_the_server_under(together, prompts(2))
    shutil.rmtree(together.far.cache, ignore_errors=True)  # a blind worker that reads again must fetch again
    with OpenServer(together.server.home, *OPTIONS, workers=0, port=together.server.port) as successor:
        check_who_came_back(together, successor)
        assert greedy_texts(successor, prompts(2), 16) == expected


def check_what_was_fetched(together: Together) -> None:
    """Its share, ten layers and the head; who sees the file fetches nothing."""
    fetched_bytes = sum(path.stat().st_size for path in (together.far.cache / "tensors").glob("[0-9a-f]*"))
    assert not together.near.cached_files()
    assert 0 < fetched_bytes < 0.7 * packaged_file(MODEL).stat().st_size


def restart_a_worker(together: Together) -> None:
    """Without it nothing fits, which the server says, until it is back."""
    server = together.server
    assert greedy_texts(server, prompts(1), 8)  # from now on `/status` tells how fast a lone stream is
    assert server.status().predicted is not None
    together.far.kill()
    assert eventually(lambda: server.status().phase == "waiting", PATIENCE_S)
    refusal = httpx.get(f"{server.url}/ready")
    assert (refusal.status_code, refusal.json()["phase"]) == (503, "waiting")
    assert f"worker {SECOND} was silent" in refusal.json()["detail"]
    together.far.start_anew()
    server.wait_for(SECOND, "ready")


def kill_the_server_under(together: Together, texts: list[str]) -> None:
    """Whose clients hear of it at once."""
    with GreedyStreams(together.server, texts, 900) as streams:
        streams.wait_until_reading()
        together.server.process.kill()
        assert [isinstance(error, StreamError) for error in streams.failures()] == [True] * len(texts)


def check_who_came_back(together: Together, successor: OpenServer) -> None:
    near, far = together.near, together.far
    assert successor.wait_open().line == together.server.line
    successor.wait_ready()
    assert successor.status().epoch > 1  # whoever still speaks of an old plan is not heard
    assert {worker.pid for worker in successor.status().workers} == {near.process.pid, far.process.pid}
    assert all("joining again" in worker.log() for worker in (near, far))
    assert not far.cached_files()
