"""The emulated cluster gives what it was asked for, can be changed while it runs, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import psutil
import pytest
from benchmarks.lab import Lab, LabError, Link, NodeConfig, check, check_path, complaints
from benchmarks.lab.check import PathReport
from benchmarks.lab.cluster import ROOT
from benchmarks.lab.remains import groups_of, namespaces_of, processes_of, remove_dead_runs
from benchmarks.lab.star import Star, mac_address

from tests.support.lab import alike, lab_or_skip

PATIENCE_S = 30.0
SLOW = alike("a", "b", rate_bits_per_s=20e6, rtt_s=0.02)
SHORT = {"rate_s": 0.5, "rtt_s": 0.1}
FOREVER = ["sleep", "1000"]


def reaches(lab: Lab, sender: str, receiver: str) -> bool:
    """Whether a datagram of `sender` gets to `receiver`, by the switch's own count."""
    to = (lab.nodes[receiver].address, 9)
    before = lab.traffic()[sender, receiver]
    output(lab, sender, f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(100), {to})")
    while (now := lab.traffic()[sender, receiver]) == before:
        pass  # the test's own deadline ends a wait for a frame that the switch forgot
    return now.num_frames > before.num_frames


def output(lab: Lab, name: str, script: str, pinned: bool = True) -> str:
    command = lab.nodes[name].command([sys.executable, "-c", script], pinned)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout.strip()


def assert_nothing_left(run: str, processes: Sequence[int]) -> None:
    assert not namespaces_of(run)
    assert not groups_of(run)
    assert not processes_of(run)
    for pid in processes:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class TestPaths:
    def test_give_the_rate_and_the_rtt_that_were_asked_for(self) -> None:
        with lab_or_skip(*SLOW) as lab:
            for path in check(lab, **SHORT):
                assert path.rate_bits_per_s == pytest.approx(path.asked_rate_bits_per_s, rel=0.2)
                assert path.asked_rtt_s <= path.median_rtt_s < 2 * path.asked_rtt_s

    def test_may_differ_by_direction_and_change_while_they_are_used(self) -> None:
        near, far = Link(8e6, 0.001), Link(40e6, 0.001)
        with lab_or_skip(NodeConfig("a", near, far), NodeConfig("b", far, far)) as lab:
            assert check_path(lab, "a", "b", **SHORT).rate_bits_per_s == pytest.approx(8e6, rel=0.2)
            assert check_path(lab, "b", "a", **SHORT).rate_bits_per_s == pytest.approx(40e6, rel=0.2)
            lab.reshape("a", up=Link(24e6, 0.021))
            changed = check_path(lab, "a", "b", **SHORT)
            assert changed.asked_rate_bits_per_s == pytest.approx(24e6, rel=0.02)
            assert changed.rate_bits_per_s == pytest.approx(24e6, rel=0.2)
            assert changed.median_rtt_s >= 0.024

    def test_can_be_cut_and_restored(self) -> None:
        with lab_or_skip(*alike("a", "b", "c", rate_bits_per_s=1e9, rtt_s=0.001)) as lab:
            assert reaches(lab, "a", "b")
            lab.cut("b")
            assert not reaches(lab, "a", "b")
            assert not reaches(lab, "b", "a")
            assert reaches(lab, "a", "c")
            lab.restore("b")
            assert reaches(lab, "a", "b")
            assert reaches(lab, "b", "a")
            assert lab.traffic()["a", "c"].num_lost_frames == 0

    def test_have_loopback_and_no_way_out(self) -> None:
        with lab_or_skip(*SLOW) as lab:
            script = "import socket; print(socket.create_server(('127.0.0.1', 0)).getsockname()[0])"
            assert output(lab, "a", script) == "127.0.0.1"
            script = "import socket; print(socket.socket().connect_ex(('192.0.2.1', 9)) != 0)"
            assert output(lab, "a", script) == "True"


class TestMachines:
    SPIN = (
        "import time; end = time.monotonic() + 0.5; start = time.process_time()\n"
        "while time.monotonic() < end: pass\n"
        "print((time.process_time() - start) / 0.5)"
    )
    AFFINITY = "import os, json; print(json.dumps(sorted(os.sched_getaffinity(0))))"

    def test_stay_on_their_cores_and_within_their_share(self) -> None:
        link = Link(1e9, 0.0001)
        with lab_or_skip(NodeConfig("slow", link, link, cores=(0,), cpu_share=0.2)) as lab:
            assert json.loads(output(lab, "slow", self.AFFINITY)) == [0]
            assert len(json.loads(output(lab, "slow", self.AFFINITY, pinned=False))) == psutil.cpu_count()
            assert float(output(lab, "slow", self.SPIN)) < 0.4
            assert len(groups_of(lab.run)) == 1
        assert_nothing_left(lab.run, ())


class TestTeardown:
    def test_ends_everything_that_was_started_even_what_went_into_a_session_of_its_own(self) -> None:
        with lab_or_skip(*SLOW) as lab:
            lab.nodes["a"].popen(FOREVER)
            shell = lab.nodes["b"].popen(["sh", "-c", "setsid sleep 1000 & echo; wait"], stdout=subprocess.PIPE)
            assert shell.stdout is not None
            with shell.stdout as started:
                started.readline()
            processes = processes_of(lab.run)
            assert len(processes) >= 3
            assert len(namespaces_of(lab.run)) == 2
        assert_nothing_left(lab.run, processes)

    def test_comes_after_an_error_too(self) -> None:
        lab = lab_or_skip(*SLOW)
        started: list[subprocess.Popen[bytes]] = []

        def fail() -> None:
            with lab:
                started.append(lab.nodes["a"].popen(FOREVER))
                raise RuntimeError("in the block")

        with pytest.raises(RuntimeError, match="in the block"):
            fail()
        assert started[0].returncode == -signal.SIGKILL
        assert_nothing_left(lab.run, [started[0].pid])

    def test_comes_when_the_switch_died(self) -> None:
        with lab_or_skip(*SLOW) as lab:
            switches = [child for child in psutil.Process().children() if "benchmarks.lab.switch" in child.cmdline()]
            switches[0].kill()
            psutil.wait_procs(switches, PATIENCE_S)
            with pytest.raises(LabError, match="switch"):
                lab.traffic()
        assert_nothing_left(lab.run, ())

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_comes_when_the_maker_is_killed(self, how: signal.Signals) -> None:
        lab_or_skip(*SLOW)
        script = (
            "import sys; from tests.support.lab import *\n"
            "with lab_or_skip(*alike('a', rate_bits_per_s=1e6, rtt_s=0)) as lab:\n"
            "    process = lab.nodes['a'].popen(['sleep', '1000']); print(lab.run, flush=True); process.wait()"
        )
        command, quiet = [sys.executable, "-c", script], subprocess.DEVNULL
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=quiet, text=True) as maker:
            assert maker.stdout is not None
            run = maker.stdout.readline().strip()
            children = psutil.Process(maker.pid).children(recursive=True)
            assert len(namespaces_of(run)) == 1
            maker.send_signal(how)
        psutil.wait_procs(children, PATIENCE_S)
        assert_nothing_left(run, [child.pid for child in children])

    def test_of_a_run_that_was_killed_with_its_switch_comes_with_the_next_lab(self) -> None:
        lab_or_skip(*SLOW)
        with subprocess.Popen(["true"]) as dead:
            dead.wait()
        run = f"bflab-{dead.pid}-0a"
        subprocess.run(["ip", "netns", "add", f"{run}-0"], check=True)
        remove_dead_runs()
        assert_nothing_left(run, ())


def test_two_labs_do_not_disturb_each_other() -> None:
    with lab_or_skip(*SLOW) as one:
        with Lab([replace(config, up=Link(1e6, 0.5)) for config in SLOW]) as other:
            other.cut("a")
            assert reaches(one, "a", "b")
            assert not reaches(other, "a", "b")
        assert reaches(one, "a", "b")


def test_nodes_need_names_that_differ() -> None:
    with pytest.raises(ValueError, match="names that differ"):
        Lab([SLOW[0], SLOW[0]])


def test_complaints_name_the_path_and_what_is_wrong_with_it() -> None:
    good = PathReport("a", "b", 1e6, 0.95e6, 0.01, 0.0101, 0.05)
    assert complaints([good]) == []
    assert complaints([replace(good, rate_bits_per_s=0.5e6)]) == ["a to b: 0.5 Mb/s, not 1.0"]
    assert complaints([replace(good, median_rtt_s=0.02)]) == ["a to b: median RTT 20.00 ms, not 10.00"]
    assert complaints([replace(good, median_rtt_s=0.009)]) == ["a to b: median RTT 9.00 ms, not 10.00"]


class TestStar:
    """The model, with times of our own: 1000 bytes at 8 Mb/s take 1 ms."""

    LINK = Link(8e6, 0.01)
    CROSSING_S = 0.022  # of one frame: 1 ms + 10 ms, twice

    @staticmethod
    def frame(receiver: int, num_bytes: int = 1000) -> bytes:
        return bytes.fromhex(mac_address(receiver).replace(":", "")).ljust(num_bytes, b"\0")

    def times(self, star: Star, until_s: float = 10.0) -> list[tuple[float, int]]:
        """Time and receiver of every delivery, each asked for when the star says."""
        found = []
        while (wake_s := star.wake_s()) <= until_s:
            found += [(round(wake_s, 9), receiver) for receiver, _ in star.deliveries(wake_s)]
        return found

    def test_a_frame_takes_size_over_rate_and_delay_on_both_links(self) -> None:
        star = Star([(self.LINK, self.LINK)] * 2)
        star.accept(0.0, 0, self.frame(1))
        assert self.times(star) == [(self.CROSSING_S, 1)]

    def test_frames_queue_where_the_links_are_shared(self) -> None:
        star = Star([(self.LINK, self.LINK)] * 3)
        for sender in (0, 1):
            star.accept(0.0, sender, self.frame(2))
        star.accept(0.0, 0, self.frame(1))
        assert self.times(star) == [(self.CROSSING_S, 2), (0.023, 2), (0.023, 1)]

    def test_the_hub_serves_in_order_of_arrival_not_of_sending(self) -> None:
        far = Link(8e6, 0.1)
        star = Star([(far, self.LINK), (self.LINK, self.LINK), (self.LINK, self.LINK)])
        star.accept(0.0, 0, self.frame(2))
        star.accept(0.05, 1, self.frame(2))
        assert self.times(star) == [(0.072, 2), (0.112, 2)]

    def test_between_sites_a_frame_takes_longer_and_does_not_hold_up_others(self) -> None:
        star = Star([(self.LINK, self.LINK)] * 3, ["here", "there", "there"], between_sites_s=0.05)
        star.accept(0.0, 0, self.frame(1))
        star.accept(0.0, 2, self.frame(1))
        assert self.times(star) == [(self.CROSSING_S, 1), (round(self.CROSSING_S + 0.05, 9), 1)]

    def test_a_shorter_delay_does_not_reorder(self) -> None:
        star = Star([(self.LINK, self.LINK)] * 2)
        star.accept(0.0, 0, self.frame(1))
        star.reshape(0.0, 0, up=Link(8e6, 0.0))
        star.accept(0.0, 0, self.frame(1))
        assert self.times(star) == [(self.CROSSING_S, 1), (0.023, 1)]

    def test_a_full_queue_drops_and_says_so(self) -> None:
        star = Star([(self.LINK, self.LINK)] * 2)
        for _ in range(300):  # 262 kB fit
            star.accept(0.0, 0, self.frame(1))
        assert len(self.times(star)) == star.traffic()[0, 1].num_frames == 263
        assert star.traffic()[0, 1].num_lost_frames == 37

    def test_a_cut_loses_what_is_on_the_way(self) -> None:
        star = Star([(self.LINK, self.LINK)] * 2)
        star.accept(0.0, 0, self.frame(1))
        star.set_cut(0.015, 1, cut=True)
        assert self.times(star) == []
        assert star.traffic()[0, 1].num_lost_frames == 1
        star.set_cut(0.1, 1, cut=False)
        star.accept(0.1, 0, self.frame(1))
        assert len(self.times(star)) == 1

    def test_a_broadcast_goes_to_all_others_and_a_strange_address_to_none(self) -> None:
        star = Star([(self.LINK, self.LINK)] * 3)
        star.accept(0.0, 1, b"\xff" * 1000)
        assert sorted(receiver for _, receiver in self.times(star)) == [0, 2]
        star.accept(1.0, 1, self.frame(7))
        star.accept(1.0, 1, self.frame(1))
        assert self.times(star) == []


@pytest.mark.parametrize(("rate", "delay_s"), [(0.0, 0.0), (float("inf"), 0.0), (1e6, -1.0), (1e6, float("nan"))])
def test_a_link_must_be_possible(rate: float, delay_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Link(rate, delay_s)
