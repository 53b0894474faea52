"""Real worker processes over real sockets: a pipeline, and every way in which it can end."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from butterfly.cluster.launcher import LocalLauncher, WorkerExit
from butterfly.communication import KeyPair, ZmqTransport
from butterfly.errors import LaunchError
from butterfly.messages import Failed, Heartbeat, Load, Loaded, LoadProgress, PeerAddress, Shutdown, Step
from butterfly.specs import StagePlan, StepPlan
from butterfly.worker import Answer
from tests.multiprocess import arithmetic_worker
from tests.multiprocess.arithmetic_worker import ArithmeticStage
from tests.multiprocess.tiny_coordinator import PATIENCE_S, TinyCoordinator, chunk

COMMAND = [sys.executable, arithmetic_worker.__file__]
NAMES = ("w0", "w1", "w2")


@pytest.fixture
def coordinator() -> Iterator[TinyCoordinator]:
    with closing(ZmqTransport("coordinator", KeyPair.generate())) as transport:
        yield TinyCoordinator(transport)


@pytest.fixture
def launcher() -> Iterator[LocalLauncher]:
    with LocalLauncher(COMMAND) as launcher:
        yield launcher


def start(coordinator: TinyCoordinator, launcher: LocalLauncher, *names: str) -> None:
    for name in names:
        launcher.start(coordinator.invite(name))
    coordinator.welcome(*names)


def start_pipeline(coordinator: TinyCoordinator, launcher: LocalLauncher, epoch: int = 1) -> None:
    start(coordinator, launcher, *NAMES)
    load_pipeline(coordinator, epoch)


def load_pipeline(coordinator: TinyCoordinator, epoch: int) -> None:
    coordinator.load(epoch, *NAMES)
    assert {coordinator.next(Loaded).sender for _ in NAMES} == set(NAMES)


def wait_for_exits(launcher: LocalLauncher, num_exits: int = 1) -> dict[str, WorkerExit]:
    exits: dict[str, WorkerExit] = {}
    deadline_s = time.monotonic() + PATIENCE_S
    while len(exits) < num_exits and time.monotonic() < deadline_s:
        wait_for_any(launcher.pids().values(), deadline_s)
        exits |= {ended.name: ended for ended in launcher.poll()}
    assert len(exits) == num_exits
    return exits


def wait_for_any(pids: Iterable[int], deadline_s: float) -> None:
    """Wait until one of our children has ended, without taking its exit code from the launcher."""
    with ExitStack() as stack:
        descriptors = [os.pidfd_open(pid) for pid in pids]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        select.select(descriptors, [], [], max(0.0, deadline_s - time.monotonic()))


def one_stage(num_layers: int = 6) -> ArithmeticStage:
    """All layers in this process: what any pipeline must equal."""
    nobody = PeerAddress(name="", endpoint="", public_key="")
    stage = StagePlan(
        worker="",
        start=0,
        end=num_layers,
        embedding=True,
        head=True,
        weight_bytes=1,
        kv_bytes=1,
        predicted_compute_s=0.0,
    )
    return ArithmeticStage(
        Load(
            epoch=0,
            model=arithmetic_worker.model(num_layers),
            stage=stage,
            tensors=(),
            dtype="float32",
            weights="int4",
            previous=nobody,
            next=nobody,
            max_context=4096,
        )
    )


def test_two_hundred_steps_through_three_processes_are_exact(
    coordinator: TinyCoordinator, launcher: LocalLauncher
) -> None:
    start_pipeline(coordinator, launcher)
    reference = one_stage()
    last = {7: 5, 8: 1000}  # two sequences, decoded together
    for step_id in range(200):
        chunks = [chunk(sequence_id, step_id, (token_id,)) for sequence_id, token_id in last.items()]
        expected = reference.run(StepPlan(step_id=step_id, slot=0, sequences=tuple(chunks)), None)
        coordinator.step("w0", step_id, 1, *chunks)
        result = coordinator.result()
        assert (result.step_id, result.epoch, Answer(result.samples)) == (step_id, 1, expected)
        last = {sample.sequence_id: sample.token_id for sample in result.samples}
    assert [timing.worker for timing in result.timings] == list(NAMES)
    for timing in result.timings:
        assert timing.received_s <= timing.started_s <= timing.finished_s
        assert timing.received_bytes > 32


def test_steps_in_flight_keep_their_order(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start_pipeline(coordinator, launcher)
    reference = one_stage()
    expected = []
    for step_id in range(12):  # a prompt in chunks, all under way at once
        part = chunk(1, 3 * step_id, (step_id + 20, 2, 3))
        expected.append(reference.run(StepPlan(step_id=step_id, slot=0, sequences=(part,)), None))
        coordinator.step("w0", step_id, 1, part)
    assert [Answer(coordinator.result().samples) for _ in expected] == expected


def test_heartbeats_and_progress_are_told(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start_pipeline(coordinator, launcher)
    progress = [m for m in coordinator.seen["w0"] if isinstance(m, LoadProgress)]
    assert progress[-1] == LoadProgress(epoch=1, worker="w0", loaded_bytes=2000, total_bytes=2000)
    coordinator.step("w0", 0, 1, chunk(1, 0, (1, 2, 3)))
    coordinator.result()
    beat = coordinator.next(Heartbeat).message
    while isinstance(beat, Heartbeat) and beat.kv_used_bytes == 0:
        beat = coordinator.next(Heartbeat).message
    assert isinstance(beat, Heartbeat)
    assert (beat.epoch, beat.kv_used_bytes) == (1, 3)
    resident = psutil.Process(launcher.pids()[beat.worker]).memory_info().rss
    assert resident / 2 < beat.resident_bytes < resident * 2


@pytest.mark.parametrize(
    ("token_id", "reason", "out_of_memory"),
    [
        (arithmetic_worker.POISON_TOKEN, "the stage choked on a token", False),
        (arithmetic_worker.OUT_OF_MEMORY_TOKEN, "w0 is out of memory: no room for another sequence", True),
        (arithmetic_worker.PRIME, "coordinator sent step 1 where sequence 1 has token ids outside", False),
    ],
)
def test_a_failing_step_is_reported_and_survived(
    token_id: int, reason: str, out_of_memory: bool, coordinator: TinyCoordinator, launcher: LocalLauncher
) -> None:
    start_pipeline(coordinator, launcher)
    coordinator.step("w0", 1, 1, chunk(1, 0, (token_id,)))
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert failed.reason.startswith(reason)
    assert (failed.worker, failed.epoch, failed.out_of_memory) == ("w0", 1, out_of_memory)
    coordinator.step("w0", 2, 1, chunk(2, 0, (1,)))
    assert coordinator.result().step_id == 2


def test_a_bug_is_reported_before_the_end(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start_pipeline(coordinator, launcher)
    coordinator.step("w0", 1, 1, chunk(1, 0, (arithmetic_worker.BUG_TOKEN,)))
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert "ZeroDivisionError: a bug" in failed.reason
    ended = wait_for_exits(launcher)["w0"]
    assert ended.returncode == 1
    assert "worker w0: internal error" in ended.output_tail
    assert "Traceback" not in ended.output_tail


def test_a_load_that_does_not_fit_is_reported(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start(coordinator, launcher, "w0")
    coordinator.load(1, "w0", model_name=arithmetic_worker.FAILING_MODEL)
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert (failed.out_of_memory, failed.epoch) == (True, 1)
    assert "the weights do not fit" in failed.reason
    coordinator.load(2, "w0")
    assert coordinator.next(Loaded).message == Loaded(epoch=2, worker="w0", weight_bytes=2000)


def test_survivors_take_a_new_plan_and_drop_the_old_one(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start_pipeline(coordinator, launcher)
    os.kill(launcher.pids()["w1"], signal.SIGKILL)
    assert wait_for_exits(launcher)["w1"].returncode == -signal.SIGKILL
    for step_id in range(3):  # the first may still be queued for the dead
        coordinator.step("w0", step_id, 1, chunk(step_id, 0, (1,)))
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert "could not send a Step to w1" in failed.reason
    coordinator.load(2, "w0", "w2", layers_each=3)
    assert {coordinator.next(Loaded).sender for _ in range(2)} == {"w0", "w2"}
    coordinator.step("w0", 8, 1, chunk(1, 0, (1,)))  # late, of the old plan
    coordinator.step("w0", 9, 2, chunk(1, 0, (1,)))
    result = coordinator.result()
    assert (result.step_id, result.epoch) == (9, 2)
    expected = one_stage().run(StepPlan(step_id=9, slot=0, sequences=(chunk(1, 0, (1,)),)), None)
    assert Answer(result.samples) == expected


def test_garbage_in_a_workers_inbox_does_not_kill_it(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start_pipeline(coordinator, launcher)
    outbox = coordinator.outboxes["w1"]
    for frames in ([b"\xff garbage"], [b"a", b"b", b"c"], [b""]):
        outbox.send_frames(frames, "garbage", PATIENCE_S)  # type: ignore[attr-defined]
        failed = coordinator.next(Failed).message
        assert isinstance(failed, Failed)
        assert failed.worker == "w1"
        assert failed.reason.startswith("coordinator sent")
    coordinator.send("w1", Step(epoch=1, plan=StepPlan(step_id=1, slot=0, sequences=())))
    assert "that w0 should send" in coordinator.next(Failed).message.reason  # type: ignore[union-attr]
    coordinator.step("w0", 2, 1, chunk(2, 0, (1,)))
    assert coordinator.result().step_id == 2


def test_shutdown_ends_workers_cleanly(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start_pipeline(coordinator, launcher)
    for name in NAMES:
        coordinator.send(name, Shutdown(epoch=0, reason="the test is over"))
    exits = wait_for_exits(launcher, 3)
    assert [(exits[name].returncode, exits[name].output_tail) for name in NAMES] == [(0, "")] * 3
    assert launcher.poll() == []


def test_sigterm_ends_a_worker_cleanly(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start(coordinator, launcher, "w0")
    os.kill(launcher.pids()["w0"], signal.SIGTERM)
    assert wait_for_exits(launcher)["w0"] == WorkerExit("w0", 0, "")


def test_a_launched_worker_leaves_ctrl_c_to_its_launcher(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start(coordinator, launcher, "w0")
    assert os.getpgid(launcher.pids()["w0"]) != os.getpgid(0)
    os.kill(launcher.pids()["w0"], signal.SIGINT)
    coordinator.load(1, "w0")
    assert coordinator.next(Loaded).sender == "w0"


def test_a_worker_started_by_hand_honours_ctrl_c(coordinator: TinyCoordinator) -> None:
    with LocalLauncher([*COMMAND, "launched=0"]) as launcher:
        start(coordinator, launcher, "w0")
        os.kill(launcher.pids()["w0"], signal.SIGINT)
        assert wait_for_exits(launcher)["w0"] == WorkerExit("w0", 0, "")


def test_a_silent_coordinator_ends_the_worker(coordinator: TinyCoordinator) -> None:
    with LocalLauncher([*COMMAND, "silence_s=0.5"]) as launcher:
        start(coordinator, launcher, "w0")
        ended = wait_for_exits(launcher)["w0"]
    assert ended.returncode == 1
    assert ended.output_tail.startswith("worker w0: coordinator was silent for")


def test_a_coordinator_that_is_not_there_ends_the_worker() -> None:
    with closing(ZmqTransport("coordinator", KeyPair.generate())) as transport:
        invitation = TinyCoordinator(transport).invite("w0")
    with LocalLauncher([*COMMAND, "join_s=0.3"]) as launcher:
        launcher.start(invitation)
        ended = wait_for_exits(launcher)["w0"]
    assert ended.returncode == 1
    assert ended.output_tail.startswith("worker w0: could not join coordinator at tcp://127.0.0.1:")


def test_stop_ends_idle_stopped_and_deaf_processes(coordinator: TinyCoordinator) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    launcher = LocalLauncher([sys.executable, "-c", deaf])
    launcher.start(coordinator.invite("deaf"))
    (pid,) = launcher.pids().values()
    os.kill(pid, signal.SIGSTOP)
    before_s = time.monotonic()
    launcher.stop(0.4)
    launcher.stop(0.4)
    assert 0.4 <= time.monotonic() - before_s < PATIENCE_S / 2
    assert not psutil.pid_exists(pid)


def test_stop_is_quick_with_workers_that_listen(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start_pipeline(coordinator, launcher)
    before_s = time.monotonic()
    launcher.stop(PATIENCE_S)
    assert time.monotonic() - before_s < PATIENCE_S / 4  # the pipe alone did it


def test_the_last_words_of_a_process_are_kept_and_logged(
    coordinator: TinyCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    program = "import sys; print(*range(100), sep='\\n', file=sys.stderr); sys.exit('no \\xff such model')"
    with LocalLauncher([sys.executable, "-c", program]) as launcher, caplog.at_level(logging.INFO):
        launcher.start(coordinator.invite("w0"))
        ended = wait_for_exits(launcher)["w0"]
    assert ended.returncode == 1
    assert ended.output_tail.splitlines() == [*(str(n) for n in range(81, 100)), "no ÿ such model"]
    assert "w0: 42" in caplog.messages


def test_words_before_the_command_of_one_worker_start_it_their_way(coordinator: TinyCoordinator) -> None:
    program = "import os; print(os.environ.get('PLACE', 'nowhere'))"
    with LocalLauncher([sys.executable, "-c", program], {"w1": ["env", "PLACE=node-1"]}) as launcher:
        for name in ("w0", "w1"):
            launcher.start(coordinator.invite(name))
        ended = wait_for_exits(launcher, 2)
    assert {name: one.output_tail for name, one in ended.items()} == {"w0": "nowhere", "w1": "node-1"}


def test_a_command_that_does_not_exist_is_a_launch_error(coordinator: TinyCoordinator) -> None:
    with LocalLauncher(["/no/such/program"]) as launcher, pytest.raises(LaunchError, match=r"w0.*No such file"):
        launcher.start(coordinator.invite("w0"))


def test_a_name_runs_once_but_may_come_back(coordinator: TinyCoordinator, launcher: LocalLauncher) -> None:
    start(coordinator, launcher, "w0")
    with pytest.raises(LaunchError, match="w0 runs already"):
        launcher.start(coordinator.invite("w0"))
    launcher.stop(PATIENCE_S)
    del coordinator.outboxes["w0"]
    start(coordinator, launcher, "w0")
    coordinator.load(1, "w0")
    assert coordinator.next(Loaded).sender == "w0"


SERVER = """
import signal, sys
from contextlib import closing
from butterfly.cluster.launcher import LocalLauncher
from butterfly.communication import KeyPair, ZmqTransport
from tests.multiprocess.tiny_coordinator import TinyCoordinator

coordinator = TinyCoordinator(ZmqTransport("coordinator", KeyPair.generate()))
launcher = LocalLauncher(sys.argv[1:])
for name in ("w0", "w1"):
    launcher.start(coordinator.invite(name))
coordinator.welcome("w0", "w1")
print(*launcher.pids().values(), flush=True)
signal.pause()
"""


def test_killing_the_server_leaves_no_worker() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *COMMAND, "silence_s=600"], cwd=root, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in server.stdout.readline().split()]
        assert len(workers) == 2
        assert all(worker.is_running() for worker in workers)
        server.kill()
        gone, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
        for worker in alive:
            worker.kill()
    assert len(gone) == 2
