"""The coordinator's own loop from the first Join to tokens, with workers that play a script."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from butterfly.cluster import ClusterState, WorkerExit
from butterfly.communication import InProcessNetwork
from butterfly.coordinator import Coordinator, CoordinatorClient, CoordinatorConfig
from butterfly.errors import InvalidRequestError, PlanError
from butterfly.messages import (
    PROTOCOL_VERSION,
    Echo,
    Introduce,
    Invitation,
    Join,
    LinksProbed,
    Load,
    Loaded,
    Message,
    PeerAddress,
    Ping,
    Probe,
    ProbeLinks,
    Profile,
    Profiled,
    Result,
    Step,
)
from butterfly.monitoring import Metrics
from butterfly.scheduling import TokenMatcher
from butterfly.specs import GrammarSpec, PlanConstraints, Request, SampledToken, StageTiming, WorkloadSpec
from tests.unit.coordinator.samples import TinyModel, link, make_node, profile

PATIENCE_S = 20.0
CONFIG = CoordinatorConfig(workload=WorkloadSpec(concurrency=1, context=64))


class NoLauncher:
    """Nobody is started here; exits are told by the test."""

    def __init__(self) -> None:
        self.exits: deque[WorkerExit] = deque()

    def start(self, invitation: Invitation) -> None:
        raise NotImplementedError

    def poll(self) -> list[WorkerExit]:
        return [self.exits.popleft()] if self.exits else []

    def kill(self, name: str) -> None: ...

    def stop(self, timeout_s: float) -> None: ...


class NoGrammars:
    def compile(self, grammar: GrammarSpec) -> TokenMatcher:
        raise InvalidRequestError("no grammars here", grammar.param)


class ScriptedWorker:
    """Joins, and answers each message at once; a layer of it takes `layer_s`, or so it says."""

    def __init__(self, network: InProcessNetwork, name: str, home: PeerAddress, layer_s: float) -> None:
        self.name, self.layer_s = name, layer_s
        transport = network.transport(name)
        transport.admit(home.name, home.public_key)
        self.public_key, self._inbox = transport.public_key, transport.open_inbox()
        self._home = transport.connect(home)
        self.heard: list[type[Message]] = []
        self.num_kinds = 1
        self._to_probe: tuple[PeerAddress, ...] = ()

    def join(self) -> None:
        node = make_node(self.name)
        self._send(
            Join(
                epoch=0,
                worker=self.name,
                protocol_version=PROTOCOL_VERSION,
                host="here",
                pid=1,
                device="cpu",
                memory_bytes=node.memory_bytes,
                memory_bandwidth_bytes_per_s=node.memory_bandwidth_bytes_per_s,
                inbox=self._inbox.address,
            )
        )

    def attend(self) -> None:
        """Answer what is here, or comes soon."""
        received = self._inbox.receive(0.005)
        while received is not None:
            if not isinstance(received.message, Ping | Echo):
                self.heard.append(type(received.message))
            answer = self._answer(received.message)
            if answer is not None:
                self._send(answer)
            received = self._inbox.receive_nowait()

    def _answer(self, message: Message) -> Message | None:
        if isinstance(message, Profile):
            return Profiled(epoch=0, worker=self.name, profile=profile(self.layer_s, self.num_kinds))
        if isinstance(message, ProbeLinks):
            self._to_probe = message.peers
            return Probe(epoch=0, number=17, reply_to=self._inbox.address)
        if isinstance(message, Echo):
            assert message.number == 17
            return LinksProbed(epoch=0, worker=self.name, links=tuple(link(self.name, p.name) for p in self._to_probe))
        if isinstance(message, Load):
            return Loaded(epoch=message.epoch, worker=self.name, weight_bytes=message.stage.weight_bytes)
        return self._compute(message) if isinstance(message, Step) else None

    def _compute(self, step: Step) -> Result:
        timing = StageTiming(worker=self.name, received_s=0.0, started_s=1.0, finished_s=1.5, received_bytes=1)
        samples = tuple(
            SampledToken(sequence_id=part.sequence_id, position=part.start + part.num_tokens, token_id=7)
            for part in step.plan.sequences
        )
        return Result(epoch=step.epoch, step_id=step.plan.step_id, samples=samples, timings=(timing,))

    def _send(self, message: Message) -> None:
        self._home.send(message, timeout_s=PATIENCE_S)


class Rig:
    """A coordinator at work, its workers, and its launcher."""

    def __init__(self, config: CoordinatorConfig, layer_s: dict[str, float]) -> None:
        network = InProcessNetwork()
        transport = network.transport("coordinator")
        inbox = transport.open_inbox()
        self.launcher = NoLauncher()
        state = ClusterState(list(layer_s), time.monotonic())
        coordinator = Coordinator(TinyModel(), self.launcher, transport, inbox, config, state, Metrics())
        self.coordinator = coordinator
        self.client = CoordinatorClient(coordinator, NoGrammars())
        self.workers = [ScriptedWorker(network, name, inbox.address, taken) for name, taken in layer_s.items()]
        for worker in self.workers:
            transport.admit(worker.name, worker.public_key)

    def play_until(self, is_so: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline_s, self.client.status()
            for worker in self.workers:
                worker.attend()

    def play_until_phase(self, phase: str) -> None:
        self.play_until(lambda: self.client.status().phase == phase)


@contextmanager
def rigged(config: CoordinatorConfig = CONFIG, **layer_s: float) -> Iterator[Rig]:
    """Workers by name that have joined, with what a layer takes on each."""
    rig = Rig(config, layer_s)
    rig.client.start()
    try:
        for worker in rig.workers:
            worker.join()
        yield rig
    finally:
        rig.client.stop("the test is over")


def test_the_cluster_is_measured_and_the_slow_worker_left_out() -> None:
    with rigged(w0=0.5, w1=0.001) as rig:
        rig.play_until_phase("ready")
        status = rig.client.status()
        slow, fast = rig.workers
        assert slow.heard == [Profile, Introduce, ProbeLinks]
        assert fast.heard == [Profile, Introduce, ProbeLinks, Load]
        assert [(worker.phase, worker.end - worker.start) for worker in status.workers] == [
            ("standby", 0),
            ("ready", 2),
        ]
        assert status.cluster is not None
        assert [node.profile for node in status.cluster.nodes] == [profile(0.5), profile(0.001)]
        ends = [("w0", "coordinator"), ("w0", "w1"), ("w1", "coordinator"), ("w1", "w0")]
        assert status.cluster.links == tuple(link(*pair) for pair in ends)


def test_losing_the_worker_that_was_left_out_ends_nothing() -> None:
    with rigged(w0=0.5, w1=0.001) as rig:
        rig.play_until_phase("ready")
        rig.launcher.exits.append(WorkerExit("w0", -9, ""))
        rig.play_until(lambda: bool(rig.client.status().detail))
        status = rig.client.status()
        assert (status.phase, status.detail) == ("ready", "worker w0, on standby, was killed by signal 9")
        assert [worker.phase for worker in status.workers] == ["lost", "ready"]


def test_constraints_reach_the_planner() -> None:
    config = CoordinatorConfig(workload=CONFIG.workload, constraints=PlanConstraints(use_all=True))
    with rigged(config, w0=0.5, w1=0.001) as rig:
        rig.play_until_phase("ready")
        assert [worker.phase for worker in rig.client.status().workers] == ["ready", "ready"]


def test_who_cannot_be_spared_is_told_what_would_fit() -> None:
    config = CoordinatorConfig(workload=WorkloadSpec(concurrency=8, context=64))
    with rigged(config, w0=0.001, w1=0.001) as rig:
        rig.play_until_phase("ready")
        with pytest.raises(PlanError) as refused:
            asyncio.run(rig.client.drain("w1"))
        words = str(refused.value)
        assert words.startswith("w1 cannot leave: without it, the model does not fit with 8 x 64 tokens of KV cache: ")
        assert "a concurrency of 6 or one more node with" in words
        assert "using node" not in words, "that it stays is no advice"


def test_a_worker_that_knocks_again_before_it_is_missed_is_let_in_after_it_is_forgotten() -> None:
    with rigged(w0=0.5, w1=0.001) as rig:
        rig.play_until_phase("ready")
        (slow, _) = rig.workers
        rig.coordinator.let_in("w0", slow.public_key)
        rig.play_until(lambda: bool(rig.client.status().detail))
        assert rig.client.status().detail == "worker w0, on standby, left: it knocked again"
        slow.join()
        rig.play_until(lambda: [one.phase for one in rig.client.status().workers] == ["standby", "ready"])


def test_without_measuring_the_plan_is_made_from_what_the_joins_say() -> None:
    config = CoordinatorConfig(workload=CONFIG.workload, measure=False)
    with rigged(config, w0=0.5, w1=0.001) as rig:
        rig.play_until_phase("ready")
        assert sorted(kind.__name__ for worker in rig.workers for kind in worker.heard) == ["Load"]
        status = rig.client.status()
        assert status.cluster is not None
        assert (status.cluster.nodes, status.cluster.links) == ((make_node("w0"), make_node("w1")), ())


def test_a_worker_whose_profile_cannot_be_ends_the_start_by_name() -> None:
    with rigged(w0=0.5, w1=0.001) as rig:
        rig.workers[1].num_kinds = 3
        rig.play_until_phase("failed")
        assert rig.client.status().detail == (
            "worker w1 failed: w1 sent a profile of 3 kinds of layers, where the model has 1"
        )


def test_a_lone_stream_is_measured_and_predicted_at_its_context() -> None:
    async def ask(rig: Rig) -> int:
        request = Request(request_id="r", prompt_token_ids=(1, 2), max_tokens=4)
        outputs = [output async for output in await rig.client.submit(request)]
        return outputs[-1].num_output_tokens

    async def ask_while_playing(rig: Rig) -> int:
        asking = asyncio.create_task(ask(rig))
        while not asking.done():
            for worker in rig.workers:
                await asyncio.to_thread(worker.attend)
        return await asking

    with rigged(w0=0.001) as rig:
        rig.play_until_phase("ready")
        assert rig.client.status().measured is None
        assert asyncio.run(ask_while_playing(rig)) == 4
        rig.play_until(lambda: (found := rig.client.status().measured) is not None and found.num_steps == 3)
        status = rig.client.status()
        assert status.measured is not None
        assert status.measured.context == 3  # 2, 3 and 4 tokens came before
        assert [(one.worker, one.compute_s) for one in status.measured.stages] == [("w0", 0.5)]
        assert status.predicted is not None
        assert status.predicted.context == 3
        assert [one.worker for one in status.predicted.stages] == ["w0"]
        assert status.predicted.stages[0].compute_s == pytest.approx(2 * 0.001 + 0.002 + 0.0001)
