"""Workers on a real Ray cluster on this machine: placed, lost in every way, brought back, and gone at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from butterfly.cluster.launcher import WorkerExit
from butterfly.cluster.ray_actor import WorkerKeeper
from butterfly.cluster.ray_launcher import RayLauncher
from butterfly.communication import KeyPair, ZmqTransport
from butterfly.errors import LaunchError
from butterfly.messages import Loaded, encode_invitation
from butterfly.specs import StepPlan
from butterfly.worker import Answer
from tests.multiprocess import arithmetic_worker
from tests.multiprocess.test_launcher import one_stage
from tests.multiprocess.tiny_coordinator import TinyCoordinator, chunk

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")
ARGUMENTS = (arithmetic_worker.__file__, "silence_s=120", "join_s=60")
PATIENCE_S = 60.0  # Ray takes seconds for what takes others milliseconds


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < deadline_s, f"waited in vain: {what}"
        pause.wait(0.05)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RayOnThisMachine:
    """A head node, and others, as processes that are nobody's children: Ray starts more of them as it likes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"

    def start_head(self, num_cpus: int) -> None:
        port = self.address.rpartition(":")[2]
        self._ray_start(
            *("--head", f"--port={port}", f"--num-cpus={num_cpus}", f"--temp-dir={self._folder}"),
            *("--include-dashboard=false", "--disable-usage-stats"),
        )

    def add_node(self, num_cpus: int) -> set[psutil.Process]:
        """Return the processes of the node."""
        before = self._daemons()
        self._ray_start(f"--address={self.address}", f"--num-cpus={num_cpus}")
        return self._daemons() - before

    def stop(self) -> None:
        daemons = self._daemons()
        processes = daemons | {child for daemon in daemons for child in _children(daemon)}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert_gone(*processes)

    def _ray_start(self, *arguments: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", *arguments]
        command += ["--node-ip-address=127.0.0.1", "--num-gpus=0", "--object-store-memory=78643200"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _daemons(self) -> set[psutil.Process]:
        """Those that name the folder of this cluster."""
        found = set()
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if str(self._folder) in " ".join(process.cmdline()) and process.pid != os.getpid():
                    found.add(process)
        return found


def _children(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayOnThisMachine]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", "a token of at least some length for this test alone")
        environment.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        folder = Path(tempfile.mkdtemp(prefix="bfly", dir="/tmp"))  # short: Ray makes paths of sockets of it
        cluster = RayOnThisMachine(folder)
        try:
            cluster.start_head(num_cpus=2)
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def coordinator() -> Iterator[TinyCoordinator]:
    with closing(ZmqTransport("coordinator", KeyPair.generate())) as transport:
        yield TinyCoordinator(transport)


@pytest.fixture
def launcher(ray_cluster: RayOnThisMachine) -> Iterator[RayLauncher]:
    with RayLauncher(ray_cluster.address, ARGUMENTS, workers_per_node=2) as launcher:
        yield launcher


def start(coordinator: TinyCoordinator, launcher: RayLauncher, *names: str) -> dict[str, psutil.Process]:
    """Start them, let them join, and return their processes."""
    for name in names:
        coordinator.outboxes.pop(name, None)
        launcher.start(coordinator.invite(name))
    wait_until(lambda: set(names) <= set(launcher.pids()) or bool(ended(launcher)), f"{names} begin")
    coordinator.welcome(*names)
    return {name: psutil.Process(launcher.pids()[name]) for name in names}


def ended(launcher: RayLauncher) -> bool:
    exits = launcher.poll()
    assert not exits, exits
    return False


def wait_for_exits(launcher: RayLauncher, num_exits: int) -> list[WorkerExit]:
    exits: list[WorkerExit] = []

    def have_come() -> bool:
        exits.extend(launcher.poll())
        return len(exits) >= num_exits

    wait_until(have_come, f"{num_exits} workers end")
    assert len(exits) == num_exits
    return exits


def wait_for_exit(launcher: RayLauncher) -> WorkerExit:
    (over,) = wait_for_exits(launcher, 1)
    return over


def assert_gone(*processes: psutil.Process) -> None:
    wait_until(lambda: not any(map(is_alive, processes)), f"the end of {[process.pid for process in processes]}")


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: Ray's processes are for others to wait for, who may take their time."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@needs_ray
def test_workers_run_through_ray_and_leave_with_the_launcher(
    coordinator: TinyCoordinator, launcher: RayLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        workers = start(coordinator, launcher, "w0", "w1")
    assert not caplog.records  # such as of niceness
    assert workers["w0"].environ()["OMP_NUM_THREADS"] == "1"
    coordinator.load(1, "w0", "w1", layers_each=3)
    assert {coordinator.next(Loaded).sender for _ in range(2)} == {"w0", "w1"}
    coordinator.step("w0", 1, 1, chunk(1, 0, (5, 6, 7)))
    expected = one_stage().run(StepPlan(step_id=1, slot=0, sequences=(chunk(1, 0, (5, 6, 7)),)), None)
    assert Answer(coordinator.result().samples) == expected
    with pytest.raises(LaunchError, match="w0 runs already"):
        launcher.start(coordinator.invite("w0"))
    with pytest.raises(LaunchError, match="no place for worker w2"):
        launcher.start(coordinator.invite("w2"))
    keepers = [worker.parent() for worker in workers.values()]
    workers["w1"].suspend()  # deaf to everything but SIGKILL
    launcher.stop(4.0)
    launcher.stop(4.0)
    assert_gone(*workers.values(), *(keeper for keeper in keepers if keeper))
    assert launcher.poll() == []


@needs_ray
def test_a_killed_worker_is_reported_and_started_again(coordinator: TinyCoordinator, launcher: RayLauncher) -> None:
    workers = start(coordinator, launcher, "w0", "w1")
    workers["w0"].kill()
    assert wait_for_exit(launcher) == WorkerExit("w0", -signal.SIGKILL, "")
    assert launcher.num_free_places() == 0  # its place is kept
    start(coordinator, launcher, "w0")
    assert workers["w1"].is_running()


@needs_ray
def test_a_worker_that_hangs_can_be_ended(coordinator: TinyCoordinator, launcher: RayLauncher) -> None:
    workers = start(coordinator, launcher, "w0", "w1")
    workers["w0"].suspend()  # deaf to everything but SIGKILL
    launcher.kill("w0")
    assert wait_for_exit(launcher) == WorkerExit("w0", -signal.SIGKILL, "")
    launcher.kill("w0")  # that one is gone
    launcher.kill("unknown")
    start(coordinator, launcher, "w0")
    assert workers["w1"].is_running()


@needs_ray
def test_a_worker_that_has_not_begun_can_be_ended(coordinator: TinyCoordinator, launcher: RayLauncher) -> None:
    launcher.start(coordinator.invite("w0"))
    launcher.kill("w0")
    over = wait_for_exit(launcher)
    assert over.name == "w0"
    assert over.returncode == -signal.SIGKILL or over.output_tail == "it was ended before it had begun"


@needs_ray
def test_a_worker_goes_with_its_actor_and_comes_back(coordinator: TinyCoordinator, launcher: RayLauncher) -> None:
    workers = start(coordinator, launcher, "w0", "w1")
    keeper = workers["w0"].parent()
    assert keeper is not None
    keeper.kill()
    over = wait_for_exit(launcher)
    assert over == WorkerExit("w0", None, f"the Ray actor on {launcher.nodes()[0].host} that held it died")
    assert_gone(workers["w0"])
    start(coordinator, launcher, "w0")


@needs_ray
def test_what_a_worker_said_last_is_told(coordinator: TinyCoordinator, ray_cluster: RayOnThisMachine) -> None:
    with RayLauncher(ray_cluster.address, ["-c", "import sys; sys.exit('no such model')"]) as launcher:
        launcher.start(coordinator.invite("w0"))
        assert wait_for_exit(launcher) == WorkerExit("w0", 1, "no such model")


@needs_ray
def test_workers_go_with_the_process_that_talks_to_ray(coordinator: TinyCoordinator, launcher: RayLauncher) -> None:
    workers = start(coordinator, launcher, "w0", "w1")
    (driver,) = (child for child in psutil.Process().children() if "butterfly.cluster.ray_driver" in child.cmdline())
    driver.kill()
    exits = wait_for_exits(launcher, 2)
    assert {over.name for over in exits} == {"w0", "w1"}
    assert all("the connection to Ray" in over.output_tail for over in exits)
    assert_gone(*workers.values())
    wait_until(lambda: launcher.num_free_places() == 0, "Ray notices")
    start(coordinator, launcher, "w0")  # over a new connection


SERVER = """
import signal, sys, threading
from butterfly.cluster.ray_launcher import RayLauncher
from butterfly.communication import KeyPair, ZmqTransport
from tests.multiprocess.tiny_coordinator import TinyCoordinator

coordinator = TinyCoordinator(ZmqTransport("coordinator", KeyPair.generate()))
launcher = RayLauncher(sys.argv[1], sys.argv[2:], workers_per_node=2)
for name in ("w0", "w1"):
    launcher.start(coordinator.invite(name))
coordinator.welcome("w0", "w1")
while len(launcher.pids()) < 2:
    threading.Event().wait(0.05)
print(*launcher.pids().values(), flush=True)
signal.pause()
"""


@needs_ray
def test_killing_the_server_leaves_nothing(ray_cluster: RayOnThisMachine) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SERVER, ray_cluster.address, *ARGUMENTS]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in server.stdout.readline().split()]
        keepers = [keeper for worker in workers if (keeper := worker.parent())]
        drivers = psutil.Process(server.pid).children()
        assert (len(workers), len(keepers), len(drivers)) == (2, 2, 1)
        server.kill()
        assert_gone(*workers, *keepers, *drivers)


@needs_ray
def test_a_node_that_appears_has_a_place_and_takes_its_worker_with_it(
    coordinator: TinyCoordinator, ray_cluster: RayOnThisMachine
) -> None:
    with RayLauncher(ray_cluster.address, ARGUMENTS) as launcher:
        (head,) = launcher.nodes()
        assert (head.num_cpus, head.num_gpus) == (2, 0)
        start(coordinator, launcher, "w0")
        assert launcher.num_free_places() == 0
        processes = ray_cluster.add_node(num_cpus=1)
        wait_until(lambda: launcher.num_free_places() == 1, "the node appears")
        workers = start(coordinator, launcher, "w1")
        assert launcher.num_free_places() == 0
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert wait_for_exit(launcher) == WorkerExit("w1", None, f"Ray lost its node {head.host}")
        assert_gone(*workers.values())
        wait_until(lambda: launcher.nodes() == (head,), "the node is gone")


def test_no_cluster_is_one_line() -> None:
    message = (
        r"nobody answers at 127\.0\.0\.1:1: Connection refused$"
        if HAS_RAY
        else "Ray is not installed here: pip install"
    )
    with pytest.raises(LaunchError, match=message):
        RayLauncher("127.0.0.1:1", ARGUMENTS)


def test_a_cluster_that_says_nothing_is_given_up() -> None:
    """Somebody accepts connections there, and never answers; Ray itself would wait for longer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        message = "no Ray cluster answered at .* within 3 s" if HAS_RAY else "Ray is not installed here"
        with pytest.raises(LaunchError, match=message):
            RayLauncher(address, ARGUMENTS, connect_timeout_s=3.0)


def test_the_keeper_starts_waits_and_stops_without_ray(coordinator: TinyCoordinator) -> None:
    line = encode_invitation(coordinator.invite("w0")).decode()

    async def tell_the_end() -> tuple[int | None, str]:
        keeper = WorkerKeeper()
        await keeper.begin(line, ["-c", "print('read', len(input()) > 100)"])
        return await keeper.wait_end()

    async def kill_one_that_runs() -> tuple[int | None, str]:
        keeper = WorkerKeeper()
        await keeper.begin(line, ["-c", "import signal; signal.pause()"])
        await keeper.kill_worker()
        return await keeper.wait_end()

    async def stop_one_that_runs() -> tuple[int | None, str]:
        keeper = WorkerKeeper()
        pid, niceness = await keeper.begin(line, ["-c", "import signal; signal.pause()"])
        assert (psutil.pid_exists(pid), niceness) == (True, os.nice(0))
        waiting = asyncio.ensure_future(keeper.wait_end())
        await keeper.stop(1.0)
        assert not psutil.pid_exists(pid)
        return await waiting

    assert asyncio.run(tell_the_end()) == (0, "read True")
    assert asyncio.run(kill_one_that_runs()) == (-signal.SIGKILL, "")
    assert asyncio.run(stop_one_that_runs()) == (None, "")
