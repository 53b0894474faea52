"""A worker on the in-memory network, where its load can be held at a chosen point."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from butterfly.communication import InProcessNetwork
from butterfly.messages import Dismiss, Failed, Invitation, Load, Loaded, Ping, Result, Shutdown, Step
from butterfly.specs import Adoption, StepPlan
from butterfly.worker import Answer, Deadlines, Stage, StageFactory, StageOutput, run_worker
from butterfly.worker.stage import Progress
from tests.multiprocess.arithmetic_worker import RESOURCES, ArithmeticStage, ArithmeticStageFactory
from tests.multiprocess.tiny_coordinator import PATIENCE_S, TinyCoordinator, chunk
from tests.unit.worker.loads import load_of


class HeldFactory:
    """Stops in the middle of its first load until it is let go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.num_loads = 0

    def load(self, load: Load, progress: Progress, previous: Stage | None = None) -> ArithmeticStage:
        self.num_loads += 1
        if self.num_loads == 1:
            self.reached.set()
            assert self.go_on.wait(PATIENCE_S)
        return ArithmeticStageFactory().load(load, progress)


class WrongOutputFactory:
    """Makes stages that answer, with or without a head."""

    def load(self, load: Load, progress: Progress, previous: Stage | None = None) -> ArithmeticStage:
        return _AlwaysAnswers(load)


class _AlwaysAnswers(ArithmeticStage):
    def run(self, plan: StepPlan, hidden: memoryview | None) -> StageOutput:
        return Answer(())


@dataclass
class Running:
    """A worker on a thread of this process."""

    coordinator: TinyCoordinator
    invitation: Invitation
    exit_codes: list[int] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def end(self) -> int:
        for thread in self.threads:
            thread.join(PATIENCE_S)
        return self.exit_codes[0]


StartWorker = Callable[..., Running]


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    network = InProcessNetwork()
    home, transport = network.transport("coordinator"), network.transport("w0")
    coordinator = TinyCoordinator(home)
    home.admit("w0", transport.public_key)
    invitation = Invitation(
        name="w0", coordinator=coordinator.inbox.address, public_key=transport.public_key, secret_key="-"
    )
    running = Running(coordinator, invitation)

    def start(
        factory: StageFactory | None = None, silence_s: float = PATIENCE_S, join_s: float = PATIENCE_S
    ) -> Running:
        deadlines = Deadlines(join_s, silence_s, send_s=1.0, heartbeat_interval_s=0.05)
        stages = factory or ArithmeticStageFactory()

        def work() -> None:
            running.exit_codes.append(run_worker(invitation, transport, stages, RESOURCES, deadlines=deadlines))

        running.threads.append(threading.Thread(target=work))
        running.threads[0].start()
        return running

    yield start
    if "w0" in coordinator.outboxes and not running.exit_codes:
        coordinator.send("w0", Shutdown(epoch=0))
    running.end()
    home.close()
    transport.close()


def load_from(coordinator: TinyCoordinator, epoch: int, head: bool = True) -> Load:
    address = coordinator.inbox.address
    return load_of("w0", epoch=epoch, head=head, neighbours=(address, address))


def test_join_load_step_shutdown(start_worker: StartWorker) -> None:
    coordinator = start_worker().coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", load_from(coordinator, 1))
    assert coordinator.next(Loaded).message == Loaded(epoch=1, worker="w0", weight_bytes=2000)
    coordinator.step("w0", 5, 1, chunk(1, 0, (1, 2)))
    assert coordinator.result().step_id == 5


def test_the_answer_comes_back_whole_and_adoptions_reach_the_stage(start_worker: StartWorker) -> None:
    coordinator = start_worker().coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", load_from(coordinator, 1))
    coordinator.next(Loaded)
    coordinator.step("w0", 5, 1, chunk(1, 0, (1, 2, 3)))
    coordinator.result()
    copy = Adoption(sequence_id=2, source_id=1, num_tokens=2, keeps_source=True)
    coordinator.step("w0", 6, 1, adopted=(copy,))  # no tokens at all
    assert coordinator.result().samples == ()
    coordinator.step("w0", 7, 1, replace(chunk(2, 2, (4,)), scored_token_ids=(9,)))
    continued = coordinator.result()
    coordinator.step("w0", 8, 1, replace(chunk(3, 0, (1, 2, 4)), scored_token_ids=(7, 8, 9)))
    computed = coordinator.result()
    assert continued.samples[0].token_id == computed.samples[0].token_id
    assert [(score.sequence_id, score.start) for score in continued.scores + computed.scores] == [(2, 3), (3, 1)]
    assert continued.scores[0].logprobs == computed.scores[0].logprobs[2:]


def test_a_newer_plan_replaces_a_load_under_way(start_worker: StartWorker) -> None:
    factory = HeldFactory()
    coordinator = start_worker(factory).coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", load_from(coordinator, 1))
    assert factory.reached.wait(PATIENCE_S)
    coordinator.send("w0", load_from(coordinator, 2))
    factory.go_on.set()
    assert coordinator.next(Loaded, Failed).message == Loaded(epoch=2, worker="w0", weight_bytes=2000)


def test_shutdown_ends_a_load_under_way(start_worker: StartWorker) -> None:
    factory = HeldFactory()
    running = start_worker(factory)
    running.coordinator.welcome("w0")
    running.coordinator.send("w0", load_from(running.coordinator, 1))
    assert factory.reached.wait(PATIENCE_S)
    running.coordinator.send("w0", Shutdown(epoch=0))
    factory.go_on.set()
    assert running.end() == 0
    assert not any(isinstance(message, Loaded) for message in running.coordinator.seen["w0"])


def test_a_coordinator_that_dies_during_a_load_is_noticed(
    start_worker: StartWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = HeldFactory()
    factory.go_on.set()
    running = start_worker(factory, silence_s=0.2)
    running.coordinator.welcome("w0")
    running.coordinator.send("w0", load_from(running.coordinator, 1))
    assert running.end() == 1
    assert capsys.readouterr().err.startswith("worker w0: coordinator was silent for")


def test_who_is_told_that_it_was_given_up_does_not_wait_for_silence(
    start_worker: StartWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    running = start_worker()
    running.coordinator.welcome("w0")
    running.coordinator.send("w0", Dismiss(epoch=0, workers=("another",)))
    running.coordinator.send("w0", Dismiss(epoch=0, workers=("w0",)))
    assert running.end() == 1
    assert capsys.readouterr().err == "worker w0: coordinator has given us up\n"


def test_even_in_the_middle_of_a_load(start_worker: StartWorker, capsys: pytest.CaptureFixture[str]) -> None:
    factory = HeldFactory()
    running = start_worker(factory)
    running.coordinator.welcome("w0")
    running.coordinator.send("w0", load_from(running.coordinator, 1))
    assert factory.reached.wait(PATIENCE_S)
    running.coordinator.send("w0", Dismiss(epoch=0, workers=("w0",)))
    factory.go_on.set()
    assert running.end() == 1
    assert capsys.readouterr().err == "worker w0: coordinator has given us up\n"
    assert not any(isinstance(message, Loaded) for message in running.coordinator.seen["w0"])


def test_who_has_failed_does_not_hurry_back(start_worker: StartWorker) -> None:
    coordinator = start_worker().coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", Step(epoch=0, plan=StepPlan(step_id=5, slot=0, sequences=())))
    assert isinstance(coordinator.next(Failed).message, Failed)
    coordinator.send("w0", Dismiss(epoch=0, workers=("w0",)))
    coordinator.send("w0", load_from(coordinator, 1))
    assert isinstance(coordinator.next(Loaded).message, Loaded)


def test_pings_that_waited_behind_a_long_load_count(start_worker: StartWorker) -> None:
    factory = HeldFactory()
    coordinator = start_worker(factory, silence_s=0.3).coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", load_from(coordinator, 1))
    assert factory.reached.wait(PATIENCE_S)
    assert not factory.go_on.wait(0.4)  # longer than the coordinator may be silent
    coordinator.send("w0", Ping(epoch=0))
    factory.go_on.set()
    assert coordinator.next(Loaded).sender == "w0"


def test_a_step_of_a_plan_not_entered_is_reported(start_worker: StartWorker) -> None:
    coordinator = start_worker().coordinator
    coordinator.welcome("w0")
    coordinator.step("w0", 5, 3, chunk(1, 0, (1,)))
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert "Step of epoch 3, but the epoch here is 0" in failed.reason


def test_a_step_before_any_load_is_reported(start_worker: StartWorker) -> None:
    coordinator = start_worker().coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", Step(epoch=0, plan=StepPlan(step_id=5, slot=0, sequences=())))
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert failed.reason == "w0 has no stage for step 5"


@pytest.mark.parametrize("message", [Result(epoch=0, step_id=1, samples=(), timings=()), load_of("another worker")])
def test_what_is_not_for_a_worker_is_reported(message: Load | Result, start_worker: StartWorker) -> None:
    coordinator = start_worker().coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", message)
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("coordinator sent ")


def test_a_stage_that_returns_the_wrong_kind_is_reported(start_worker: StartWorker) -> None:
    coordinator = start_worker(WrongOutputFactory()).coordinator
    coordinator.welcome("w0")
    coordinator.send("w0", load_from(coordinator, 1, head=False))
    coordinator.next(Loaded)
    coordinator.step("w0", 5, 1, chunk(1, 0, (1,)))
    failed = coordinator.next(Failed).message
    assert isinstance(failed, Failed)
    assert failed.reason == "the stage of w0 did not return a hidden state"


def test_nobody_answers_a_join(start_worker: StartWorker, capsys: pytest.CaptureFixture[str]) -> None:
    running = start_worker(join_s=0.1)
    assert running.end() == 1
    assert capsys.readouterr().err == (
        f"worker w0: could not join coordinator at {running.invitation.coordinator.endpoint} within 0.1 s\n"
    )
