"""What is rare but happens: a worker that only hung, two coordinators, clocks that differ, disks that are full."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest
from benchmarks.processes import fetch

from tests.support.greedy_streams import greedy_texts
from tests.support.lab import alike, lab_or_skip
from tests.support.open_cluster import JoinedWorker, OpenServer, environment_of, prompts, worker_command
from tests.support.product import BUTTERFLY, PATIENCE_S, eventually, session_members
from tests.support.small_disk import SmallDisk, small_disk_or_skip

OPTIONS = ("--no-measure", "--context", "1024")
PROMPTS, TOKENS = prompts(2), 16
JOIN_LINE = re.compile(r"--join '(butterfly://\S+)'")
DAY_S = 86_400
DISK_BYTES = 256 << 10
FULL = "No space left on device"

SKEW = """\
import time

def later(clock, by_s):
    return lambda: clock() + by_s

time.time = later(time.time, {by_s})
time.monotonic = later(time.monotonic, {by_s})
time.time_ns = later(time.time_ns, {by_s} * 10**9)
"""


# ------------------------------------------------------------------------------------- ones that come back soon


class Pair(NamedTuple):
    """A server that starts nobody, and one worker that joined it."""

    server: OpenServer
    guest: JoinedWorker
    texts: list[str]

    def is_whole(self) -> bool:
        """Whether this very process of the guest serves."""
        status = self.server.status()
        here = [(one.name, one.pid) for one in status.workers if one.phase == "ready"]
        return status.phase == "ready" and here == [(self.guest.name, self.guest.process.pid)]

    def expect_it_is_whole_again(self) -> None:
        assert eventually(self.is_whole, PATIENCE_S), f"{self.server.complaints()}\n{self.guest.log()}"
        assert greedy_texts(self.server, PROMPTS, TOKENS) == self.texts


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield paired(stack, tmp_path, tmp_path / "server")


def paired(stack: ExitStack, folder: Path, state: Path) -> Pair:
    server = stack.enter_context(OpenServer(state, *OPTIONS, workers=0)).wait_open()
    guest = stack.enter_context(JoinedWorker("guest", folder / "guest", server.line))
    server.wait_ready()
    return Pair(server, guest, greedy_texts(server, PROMPTS, TOKENS))


def test_one_that_hung_hears_that_it_was_given_up(pair: Pair) -> None:
    os.kill(pair.guest.process.pid, signal.SIGSTOP)
    assert eventually(lambda: pair.server.status().phase == "waiting", PATIENCE_S)
    os.kill(pair.guest.process.pid, signal.SIGCONT)
    pair.expect_it_is_whole_again()
    assert "coordinator has given us up; joining again" in pair.guest.log()


def test_one_that_is_started_again_before_it_is_missed_is_not_forgotten_with_its_predecessor(pair: Pair) -> None:
    pair.guest.start_anew()
    pair.expect_it_is_whole_again()
    assert "could not join" not in pair.guest.log()


def test_one_that_was_cut_off_hears_that_it_was_given_up(tmp_path: Path) -> None:
    with lab_or_skip(*alike("home", "away", rate_bits_per_s=1e9, rtt_s=0.0004)) as lab, ExitStack() as stack:
        home = lab.nodes["home"]
        listening = ("--host", home.address, "--port", "8000", "--listen", f"{home.address}:7700", "--no-api-key")
        argv = [*BUTTERFLY, "serve", "smollm2", "--workers", "0", *listening, *OPTIONS]
        log = stack.enter_context((tmp_path / "log").open("a+"))
        home.popen(argv, stdout=log, stderr=log, env=environment_of(tmp_path))

        def phase() -> str:
            return str(json.loads(fetch(f"http://{home.address}:8000/status", home, PATIENCE_S))["phase"])

        assert eventually(lambda: JOIN_LINE.search(text_of(log)) is not None, PATIENCE_S), text_of(log)
        (line,) = JOIN_LINE.findall(text_of(log))
        away = lab.nodes["away"].command([])
        guest = stack.enter_context(JoinedWorker("guest", tmp_path / "guest", line, away))
        assert eventually(lambda: "at http://" in text_of(log), PATIENCE_S), guest.log()
        lab.cut("away")
        assert eventually(lambda: phase() == "waiting", PATIENCE_S)
        lab.restore("away")
        assert eventually(lambda: phase() == "ready", PATIENCE_S), guest.log()
        assert "coordinator has given us up; joining again" in guest.log()


def text_of(log: TextIO) -> str:
    log.seek(0)
    return log.read()


# ------------------------------------------------------------------------------------- two coordinators


def test_two_servers_of_one_identity_keep_to_their_own_workers(tmp_path: Path) -> None:
    """Same state folder, so the same key, book and secret. A worker belongs to where its line led it."""
    with ExitStack() as stack:
        first = stack.enter_context(OpenServer(tmp_path / "home", *OPTIONS, workers=0)).wait_open()
        early = stack.enter_context(JoinedWorker("desk", tmp_path / "desk", first.line))
        first.wait_ready()
        expected, epoch = greedy_texts(first, PROMPTS, TOKENS), first.status().epoch

        second = stack.enter_context(OpenServer(tmp_path / "home", *OPTIONS, workers=0)).wait_open()
        assert second.line.partition("#")[2] == first.line.partition("#")[2], "one key and one secret"
        assert second.line != first.line
        late = stack.enter_context(JoinedWorker("desk", tmp_path / "desk", second.line))  # the same machine and name
        second.wait_ready()
        assert greedy_texts(second, PROMPTS, TOKENS) == expected
        for server, name, worker in ((first, "desk", early), (second, "desk-2", late)):
            assert [(one.name, one.pid) for one in server.status().workers] == [(name, worker.process.pid)]

        for process in session_members(second.process.pid):
            process.kill()
        assert greedy_texts(first, PROMPTS, TOKENS) == expected
        assert (first.status().epoch, first.stages()) == (epoch, ["desk"])


# ------------------------------------------------------------------------------------- clocks that differ


def skewed(folder: Path, by_s: int) -> tuple[str, str]:
    """Words before a command whose Python is to have clocks that are ahead by so much."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SKEW.format(by_s=by_s))
    prefix = ("env", f"PYTHONPATH={folder}")
    command = [sys.executable, "-c", "import time; print(time.time())"]
    here, there = (
        float(subprocess.run([*words, *command], capture_output=True, check=True, timeout=PATIENCE_S).stdout)
        for words in ((), prefix)
    )
    assert abs(there - here - by_s) < PATIENCE_S
    return prefix


def test_clocks_of_workers_may_differ_by_days(tmp_path: Path) -> None:
    """And whether a token has expired is judged by the server's alone."""
    with ExitStack() as stack:
        pins = ("--layers", "ahead=0:15", "--layers", "behind=15:30")  # so each waits for the other
        server = stack.enter_context(OpenServer(tmp_path / "server", *pins, "--context", "1024", workers=0)).wait_open()
        line = server.manage_tokens("make", "--expires", "1h")
        for name, by_s in (("ahead", DAY_S), ("behind", -DAY_S)):
            prefix = skewed(tmp_path / f"clock-{name}", by_s)
            stack.enter_context(JoinedWorker(name, tmp_path / name, line, prefix))
        server.wait_ready()
        assert sorted(server.stages()) == ["ahead", "behind"]
        texts = greedy_texts(server, PROMPTS, TOKENS)
        assert greedy_texts(server, PROMPTS, TOKENS) == texts
        assert greedy_texts(server, prompts(1), TOKENS)  # alone, so that its times are taken
        measured = server.status().measured
        assert measured is not None
        assert 0 < sum(stage.compute_s for stage in measured.stages) <= measured.tpot_s < PATIENCE_S
        assert not server.status().recoveries, server.complaints()


# ------------------------------------------------------------------------------------- disks that are full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk_or_skip(tmp_path / "disk", DISK_BYTES) as disk:
        yield disk


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def complaint_of(*arguments: str, state: Path, prefix: tuple[str, ...] = ()) -> str:
    """Run a command that must fail; return the one line that it says."""
    environment = {**os.environ, "BUTTERFLY_STATE": str(state), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*prefix, *arguments], env=environment, capture_output=True, text=True, input="", timeout=PATIENCE_S
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_server_whose_disk_is_full_says_so_and_leaves_nothing_half_written(disk: SmallDisk) -> None:
    state = disk.folder / "state"
    disk.fill()
    before = contents(disk.folder)
    serve = (*BUTTERFLY, "serve", "smollm2", "--workers", "0", "--port", "0", "--listen", "127.0.0.1:0")
    line = complaint_of(*serve[:-1], "127.0.0.1:17700", state=state)
    assert line == f"error: cannot write {state}/coordinator/keys.json: {FULL}"
    assert contents(disk.folder) == before


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_what_was_written_before_stays_whole(tmp_path: Path) -> None:
    """Without a disk of its own: no file may grow any more."""
    make = (*BUTTERFLY, "token", "make", "--url", "somewhere:7700")
    environment = {**os.environ, "BUTTERFLY_STATE": str(tmp_path)}
    subprocess.run(make, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)
    before = contents(tmp_path)
    assert set(before) == {"coordinator/keys.json", "coordinator/joined.json"}
    line = complaint_of(*make, state=tmp_path, prefix=("sh", "-c", 'ulimit -f 0; exec "$@"', "sh"))
    assert line == f"error: cannot write {tmp_path}/coordinator/joined.json: File too large"
    assert contents(tmp_path) == before


def test_a_server_whose_disk_fills_up_takes_back_who_it_knows_and_others_later(disk: SmallDisk, tmp_path: Path) -> None:
    state = disk.folder / "state"
    with ExitStack() as stack:
        pair = paired(stack, tmp_path, state)
        server = pair.server
        disk.fill()
        before = contents(state)
        new = stack.enter_context(JoinedWorker("new", tmp_path / "new", server.line))
        assert eventually(lambda: "not taking in workers at this moment" in new.log(), PATIENCE_S), new.log()
        pair.guest.start_anew()
        assert eventually(lambda: "cannot note that guest came back" in server.complaints(), PATIENCE_S)
        pair.expect_it_is_whole_again()
        assert contents(state) == before
        assert f"cannot take in a worker: cannot write {state}/coordinator/joined.json: {FULL}" in server.complaints()
        assert str(state) not in new.log(), "where the server keeps things is not for others"
        disk.free()
        server.wait_for("new", "ready", "standby")


def test_a_worker_whose_disk_is_full_says_so(disk: SmallDisk, tmp_path: Path) -> None:
    with OpenServer(tmp_path / "server", *OPTIONS, workers=0) as server:
        server.wait_open()
        disk.fill()
        before = contents(disk.folder)
        done = subprocess.run(
            worker_command("guest", tmp_path / "cache"),
            input=f"{server.line}\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment_of(disk.folder),
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: cannot write {disk.folder}/state/worker/")
        assert line.endswith(f"guest.json: {FULL}")
        assert contents(disk.folder) == before
