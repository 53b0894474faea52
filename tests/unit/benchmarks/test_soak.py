"""A soak's own judgement: what is flat, what a stream lost, what is left over, what the page says."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from benchmarks.faults.running import Cluster, Stream
from benchmarks.hardware import Machine, ThreadRates
from benchmarks.soak.events import MOST_GUESTS, next_event
from benchmarks.soak.load import LoadThread, with_silence, with_streams
from benchmarks.soak.record import EventRecord, Load, ProcessRecord, Sample, SoakRecord
from benchmarks.soak.remains import MARK_VARIABLE, find_remains, marked_processes
from benchmarks.soak.report import page, write_results
from benchmarks.soak.sampling import handles_by_kind, sample
from benchmarks.soak.trend import trend, without_warm_up


def series(*values: float) -> list[tuple[float, float]]:
    return [(3.0 * number, value) for number, value in enumerate(values)]


def test_a_line_has_its_slope_and_one_wild_sample_does_not_move_it() -> None:
    points = series(*(float(number) for number in range(30)))
    points[-1] = (points[-1][0], 1e9)
    found = trend(points)
    assert found is not None
    assert found.per_hour == pytest.approx(1200.0)  # one every three seconds
    assert found.growth == pytest.approx(20.0)


def test_too_few_points_tell_nothing() -> None:
    assert trend(series(1, 2, 3, 4, 5, 6, 7, 8)) is None
    assert trend([]) is None


def test_the_warm_up_is_a_share_of_the_time() -> None:
    assert without_warm_up(series(*range(11)), 0.2) == series(*range(11))[2:]
    assert without_warm_up([], 0.2) == []


@pytest.mark.parametrize(
    ("values", "rises"),
    [
        ([20.0] * 30, False),
        ([20.0, 26.0, 32.0] * 10, False),  # workers come and go
        ([20.0 + number // 3 for number in range(30)], True),
        ([20.0 + number // 3 + number % 3 for number in range(30)], True),  # and each leaves one behind
        ([20.0] * 10 + [21.0] * 10 + [22.0] * 10, False),  # within what quiet moments differ by
        ([20.0] * 10 + [30.0] * 20, False),  # once, and no more
        ([40.0 - number for number in range(30)], False),
    ],
)
def test_a_count_rises_steadily_when_its_minimum_does(values: list[float], rises: bool) -> None:
    found = trend(series(*values))
    assert found is not None
    assert found.rises_steadily(3) is rises


def test_streams_are_compared_with_what_was_expected() -> None:
    load = with_streams(
        Load(),
        [
            Stream("as ever", "", [1.0, 2.0, 5.5]),
            Stream("else", "", [1.0]),
            Stream("as", "worker-1 was lost", [1.0, 1.5]),
        ],
        ["as ever", "text", "as ever"],
    )
    assert (load.num_streams, load.num_changed, load.num_failed, load.num_tokens) == (3, 1, 1, 6)
    assert load.longest_pause_s == 3.5
    assert load.notes == ("worker-1 was lost", "changed: 'else'")


def test_streams_that_never_answer_have_failed() -> None:
    load = with_streams(with_silence(Load(), 2, "late"), [Stream("one", "", [1.0])], ["one", "two"])
    assert (load.num_streams, load.num_failed, load.num_changed) == (4, 4, 0)
    assert load.notes == ("late", "2 streams asked for, 1 answered")


class ScriptedCluster(Cluster):
    """Answers with one stream for each prompt, after which `asked` is set, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__("http://nobody", None, None, 1)
        self._failure = failure
        self.asked = threading.Event()

    def ask(self, prompts: Sequence[str], meanwhile: Callable[[], None]) -> list[Stream]:
        self.asked.set()
        if self._failure is not None:
            raise self._failure
        return [Stream(prompt.upper(), "", [1.0]) for prompt in prompts]


def test_streams_are_asked_until_the_block_ends() -> None:
    on, prompts = ScriptedCluster(), ["a", "b", "c", "d"]
    with LoadThread(on, prompts, ["A", "B", "C", "D"], seed=0) as streams:
        assert on.asked.wait(20)
    assert streams.load.num_streams == streams.load.num_tokens > 0
    assert (streams.load.num_changed, streams.load.num_failed) == (0, 0)


def test_a_load_that_breaks_off_is_no_quiet_one() -> None:
    on = ScriptedCluster(ValueError("no such line"))
    with pytest.raises(ValueError, match="no such line"), LoadThread(on, ["a"] * 4, ["A"] * 4, seed=0):
        assert on.asked.wait(20)


def test_only_what_is_possible_happens() -> None:
    chance = random.Random(3)

    def drawn(num_guests: int, can_kill_local: bool) -> set[str]:
        return {next_event(chance, num_guests, can_kill_local) for _ in range(200)}

    assert drawn(0, can_kill_local=False) == {"join"}
    assert drawn(0, can_kill_local=True) == {"join", "kill local"}
    assert drawn(1, can_kill_local=True) == {"join", "kill local", "kill joined", "drain", "terminate"}
    assert drawn(MOST_GUESTS, can_kill_local=False) == {"kill joined", "drain", "terminate"}


def test_what_is_left_is_found(tmp_path: Path) -> None:
    for name in ("tmp", "server/coordinator", "guests-cache/tensors/in-use"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "server/coordinator/keys.json").touch()
    assert find_remains("a mark nobody has", tmp_path, (), set(os.listdir("/dev/shm"))) == ([], [])
    (tmp_path / "tmp/leaked").touch()
    (tmp_path / "server/coordinator/joined.json.new").touch()
    (tmp_path / "guests-cache/tensors/abc.part").touch()
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as listener:
        unix.bind(str(tmp_path / "s"))
        port = listener.getsockname()[1]
        leftovers, kept = find_remains("a mark nobody has", tmp_path, (port,), set(os.listdir("/dev/shm")))
    assert set(leftovers) == {
        f"port {port} still answers",
        f"socket {tmp_path}/s",
        "temporary file tmp/leaked",
        "temporary file server/coordinator/joined.json.new",
    }
    assert kept == ["abc.part"]


def test_a_process_is_found_by_its_mark_as_long_as_it_lives() -> None:
    waiting = [sys.executable, "-c", "print('up', flush=True); input()"]
    environment = {**os.environ, MARK_VARIABLE: "the mark of this test"}
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = marked_processes("the mark of this test")
        process.communicate(b"\n")
    assert [line.split()[0] for line in found] == [str(process.pid)]
    assert marked_processes("the mark of this test") == []


def test_a_sample_counts_a_socket_and_a_file(tmp_path: Path) -> None:
    before, kinds = sample(os.getpid(), 0.0), handles_by_kind(os.getpid())
    path = tmp_path / "held"
    with socket.socket(), path.open("w"):
        after = sample(os.getpid(), 1.0)
        assert handles_by_kind(os.getpid())[str(path)] == 1
    assert (after.num_fds - before.num_fds, after.num_sockets - before.num_sockets) == (2, 1)
    assert str(path) not in kinds
    assert after.rss_bytes >= after.uss_bytes > 0
    assert after.num_threads >= 1


def lifetime(name: str, num_fds: list[int], num_processes: list[int] | None = None) -> ProcessRecord:
    samples = [
        Sample(
            at_s=3.0 * number,
            rss_bytes=100_000_000,
            pss_bytes=90_000_000,
            uss_bytes=80_000_000,
            num_fds=count,
            num_sockets=5,
            num_threads=9,
            num_processes=num_processes[number] if num_processes else 3,
        )
        for number, count in enumerate(num_fds)
    ]
    return ProcessRecord(name=name, pid=1, samples=tuple(samples))


def record(server_fds: list[int], load: Load, leftovers: tuple[str, ...] = (), num_pipes: int = 3) -> SoakRecord:
    rates = ThreadRates(threads=1, read_bytes_per_s=1e10, product_flops_per_s=1e11, kernels=())
    machine = Machine(
        cpu="some cpu",
        slug="some",
        cores=2,
        memory_bytes=1 << 34,
        kernel="6.1",
        python="3.11",
        torch="2.12",
        rates=(rates,),
    )
    return SoakRecord(
        created="2026-11-23",
        machine=machine,
        model="smollm2",
        seed=0,
        lasted_s=1200.0,
        load=load,
        events=(EventRecord("join", "guest-1", 20.0), EventRecord("drain", "guest-1", 40.0, "not now")),
        num_processes=3,
        server=lifetime("server", server_fds),
        worker=lifetime("worker-0", [30] * 40),
        first_handles={"socket": 5},
        last_handles={"socket": 5, "pipe": num_pipes},
        leftovers=leftovers,
    )


def test_handles_are_compared_while_as_many_processes_live_as_mostly() -> None:
    more_and_more_workers = [3] * 19 + [4] * 10 + [5] * 11
    handles = [30 + 5 * count for count in more_and_more_workers]
    assert lifetime("server", handles).rising_handles() == ["num_fds"]
    assert lifetime("server", handles, more_and_more_workers).rising_handles() == []


def test_a_quiet_soak_passes_and_its_page_says_so(tmp_path: Path) -> None:
    quiet = record([40] * 40, Load(num_streams=9, num_tokens=400))
    assert quiet.failures == []
    target = write_results(quiet, tmp_path)
    assert target.name == "soak_some_202611.md"
    assert (tmp_path / "soak_some_202611.json").is_file()
    text = target.read_text()
    assert "9 streams, 400 tokens: 0 changed, 0 failed" in text
    assert "Nothing was left over" in text
    assert "| open handles | 40 | 40 | +0.0 | +0.0/h | 40, 40 |" in text
    assert "- drain guest-1: not now" in text


def test_every_fault_of_a_soak_is_named() -> None:
    rising = [40 + number // 2 for number in range(40)]
    load = Load(num_streams=9, num_changed=1, num_failed=2)
    bad = record(rising, load, leftovers=("process 12 python",), num_pipes=4)
    assert bad.failures == [
        "1 streams changed",
        "2 streams failed",
        "server: open handles grows steadily",
        "server: 4 more open handles than before",
        "left over: process 12 python",
    ]
    assert "- server: open handles grows steadily" in page(bad)
