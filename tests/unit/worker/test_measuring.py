"""A worker that is told to measure itself and its links, on the in-memory network and once over real sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from butterfly.communication import InProcessNetwork, KeyPair, Outbox, Transport, ZmqTransport
from butterfly.errors import PeerTimeoutError
from butterfly.messages import (
    Dismiss,
    Echo,
    Failed,
    Introduce,
    Invitation,
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
    Shutdown,
    TensorHeader,
)
from butterfly.specs import ComputeProfile, LayerProfile, TimeTable
from butterfly.worker import Deadlines, Profiler, Report, run_worker
from tests.multiprocess.arithmetic_worker import RESOURCES, ArithmeticStageFactory
from tests.multiprocess.tiny_coordinator import PATIENCE_S, TinyCoordinator
from tests.unit.worker.loads import load_of
from tests.unit.worker.slow_samples import request

TABLE = TimeTable(num_tokens=(1,), contexts=(0,), seconds=((0.25,),))
PROFILE = ComputeProfile(layers=(LayerProfile(decode=TABLE, prefill=TABLE),), head=TABLE, step_s=0.5)


class HeldProfiler:
    """Its first measurement goes on until it is let go of or interrupted."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.num_begun = self.num_done = 0
        self._error = error

    def profile(self, request: Profile, report: Report) -> ComputeProfile:
        self.num_begun += 1
        if self._error is not None:
            raise self._error
        self.reached.set()
        while self.num_begun == 1 and not self.go_on.wait(0.01):
            report(0.5)
        self.num_done += 1
        return PROFILE


@dataclass
class Cluster:
    """Workers on threads of this process, and their coordinator."""

    transport_of: Callable[[str], Transport]
    echo_s: float
    threads: list[threading.Thread] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    transports: dict[str, Transport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home = self.transport_of("coordinator")
        self.coordinator = TinyCoordinator(self.home)

    def start(self, name: str, profiler: Profiler | None = None) -> None:
        transport = self.transports[name] = self.transport_of(name)
        self.home.admit(name, transport.public_key)
        invitation = Invitation(
            name=name,
            coordinator=self.coordinator.inbox.address,
            public_key=transport.public_key,
            secret_key="-",
        )
        deadlines = Deadlines(PATIENCE_S, PATIENCE_S, send_s=1.0, heartbeat_interval_s=0.05, echo_s=self.echo_s)

        def work() -> None:
            self.exit_codes.append(
                run_worker(
                    invitation, transport, ArithmeticStageFactory(), RESOURCES, profiler=profiler, deadlines=deadlines
                )
            )

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()
        self.coordinator.welcome(name)

    def address(self, name: str) -> PeerAddress:
        return self.coordinator.addresses[name]

    def introduce(self, *names: str) -> None:
        for name in names:
            peers = tuple(self.address(other) for other in names if other != name)
            self.coordinator.send(name, Introduce(epoch=0, peers=peers))

    def failure(self) -> str:
        failed = self.coordinator.next(Failed).message
        assert isinstance(failed, Failed)
        return failed.reason

    def outbox_to(self, sender: Transport, name: str) -> Outbox:
        return sender.connect(self.address(name))

    def close(self) -> None:
        for name in self.coordinator.outboxes:
            self.coordinator.send(name, Shutdown(epoch=0))
        for thread in self.threads:
            thread.join(PATIENCE_S)
        for transport in (self.home, *self.transports.values()):
            transport.close()


StartCluster = Callable[..., Cluster]


@pytest.fixture
def start_cluster() -> Iterator[StartCluster]:
    with ExitStack() as stack:
        network = InProcessNetwork()

        def start(*names: str, profiler: Profiler | None = None, echo_s: float = PATIENCE_S) -> Cluster:
            cluster = stack.enter_context(closing(Cluster(network.transport, echo_s)))
            for name in names:
                cluster.start(name, profiler)
            return cluster

        yield start


# ---------------------------------------------------------------------------------------- profiles


def test_a_profile_is_answered_with_its_own_epoch(start_cluster: StartCluster) -> None:
    profiler = HeldProfiler()
    profiler.go_on.set()
    coordinator = start_cluster("w0", profiler=profiler).coordinator
    coordinator.send("w0", request())
    assert coordinator.next(Profiled, Failed).message == Profiled(epoch=3, worker="w0", profile=PROFILE)


def test_a_worker_that_cannot_measure_says_so(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0")
    cluster.coordinator.send("w0", request())
    assert cluster.failure() == "w0 cannot measure what steps take"


def test_no_memory_to_measure_with_is_reported_as_that(start_cluster: StartCluster) -> None:
    coordinator = start_cluster("w0", profiler=HeldProfiler(MemoryError("not even one layer"))).coordinator
    coordinator.send("w0", request())
    failed = coordinator.next(Failed).message
    assert failed == Failed(epoch=0, worker="w0", reason="w0 is out of memory: not even one layer", out_of_memory=True)


@pytest.mark.parametrize(
    ("message", "answer"), [(request(), Profiled), (load_of("w0"), Loaded)], ids=["a profile", "a load"]
)
def test_what_is_newer_ends_a_measurement(
    message: Profile | Load, answer: type[Message], start_cluster: StartCluster
) -> None:
    profiler = HeldProfiler()
    coordinator = start_cluster("w0", profiler=profiler).coordinator
    coordinator.send("w0", request())
    assert profiler.reached.wait(PATIENCE_S)
    coordinator.send("w0", message)
    assert isinstance(coordinator.next(Profiled, Loaded, Failed).message, answer)
    assert profiler.num_begun - profiler.num_done == 1


def test_shutdown_ends_a_measurement(start_cluster: StartCluster) -> None:
    profiler = HeldProfiler()
    cluster = start_cluster("w0", profiler=profiler)
    cluster.coordinator.send("w0", request())
    assert profiler.reached.wait(PATIENCE_S)
    cluster.coordinator.send("w0", Shutdown(epoch=0))
    cluster.threads[0].join(PATIENCE_S)
    assert (cluster.exit_codes, profiler.num_done) == ([0], 0)
    del cluster.coordinator.outboxes["w0"]


def test_pings_do_not_end_a_measurement_and_probes_are_answered_meanwhile(start_cluster: StartCluster) -> None:
    profiler = HeldProfiler()
    coordinator = start_cluster("w0", profiler=profiler).coordinator
    coordinator.send("w0", request())
    assert profiler.reached.wait(PATIENCE_S)
    coordinator.send("w0", Ping(epoch=0))
    coordinator.send("w0", Probe(epoch=0, number=8, reply_to=coordinator.inbox.address))
    assert coordinator.next(Echo).message == Echo(epoch=0, number=8)
    profiler.go_on.set()
    assert isinstance(coordinator.next(Profiled, Failed).message, Profiled)


# ------------------------------------------------------------------------------------------- links


def test_the_coordinator_gets_an_echo_of_what_it_sends(start_cluster: StartCluster) -> None:
    coordinator = start_cluster("w0").coordinator
    header = TensorHeader(dtype="bfloat16", shape=(3,))
    probe = Probe(epoch=2, number=5, reply_to=coordinator.inbox.address, payload=header)
    coordinator.outboxes["w0"].send(probe, b"123456", timeout_s=PATIENCE_S)
    assert coordinator.next(Echo).message == Echo(epoch=2, number=5)


def test_links_are_measured_between_workers(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0", "w1", "w2")
    cluster.introduce("w0", "w1", "w2")
    for name, others in (("w1", ("w0", "w2")), ("w0", ("w1", "w2"))):
        peers = tuple(cluster.address(other) for other in others)
        cluster.coordinator.send(name, ProbeLinks(epoch=4, peers=peers))
        probed = cluster.coordinator.next(LinksProbed, Failed).message
        assert isinstance(probed, LinksProbed)
        assert (probed.epoch, probed.worker) == (4, name)
        assert [(link.source, link.target) for link in probed.links] == [(name, other) for other in others]
        assert all(link.latency_s >= 0 and link.bandwidth_bytes_per_s > 0 for link in probed.links)


def test_two_workers_may_probe_one_another_at_once(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0", "w1")
    cluster.introduce("w0", "w1")
    for name, other in (("w0", "w1"), ("w1", "w0")):
        cluster.coordinator.send(name, ProbeLinks(epoch=0, peers=(cluster.address(other),)))
    answers = [cluster.coordinator.next(LinksProbed, Failed) for _ in range(2)]
    assert {(type(answer.message), answer.sender) for answer in answers} == {(LinksProbed, "w0"), (LinksProbed, "w1")}


def test_a_peer_that_takes_no_probe_is_named(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0", "w1", echo_s=0.1)
    cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(cluster.address("w1"),)))  # never introduced
    assert cluster.failure().startswith("could not send a Probe to w1 within 0.1 s")


def test_a_peer_that_does_not_answer_is_named(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0", "w1", echo_s=0.1)
    # w1 lets w0 in, but is not let in by it
    cluster.coordinator.send("w1", Introduce(epoch=0, peers=(cluster.address("w0"),)))
    cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(cluster.address("w1"),)))
    assert cluster.failure() == "w0 got no answer to a probe of w1 within 0.1 s"
    cluster.introduce("w0", "w1")  # it goes on as if nothing had been
    cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(cluster.address("w1"),)))
    assert isinstance(cluster.coordinator.next(LinksProbed, Failed).message, LinksProbed)


def test_a_load_ends_a_measurement_of_links(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0")
    silent = cluster.transports["silent"] = cluster.transport_of("silent")
    silent.admit("w0", cluster.transports["w0"].public_key)
    inbox = silent.open_inbox()
    cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(inbox.address,)))
    received = inbox.receive(PATIENCE_S)
    assert received is not None
    assert isinstance(received.message, Probe)
    cluster.coordinator.send("w0", load_of("w0"))
    assert isinstance(cluster.coordinator.next(Loaded, LinksProbed, Failed).message, Loaded)


def test_a_probe_is_answered_to_nobody_else(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0", "w1")
    cluster.coordinator.send("w0", Probe(epoch=0, number=1, reply_to=cluster.address("w1")))
    assert cluster.failure() == "coordinator sent a probe to be answered to w1"


def test_a_probe_is_answered_nowhere_else_and_holds_nobody_up(
    start_cluster: StartCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = start_cluster("w0", "w1")
    cluster.introduce("w0", "w1")
    elsewhere = replace(cluster.address("w1"), endpoint="in-process://nowhere")
    with closing(cluster.outbox_to(cluster.transports["w1"], "w0")) as outbox:
        outbox.send(Probe(epoch=0, number=1, reply_to=elsewhere), timeout_s=PATIENCE_S)
    cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(cluster.address("w1"),)))
    assert isinstance(cluster.coordinator.next(LinksProbed, Failed).message, LinksProbed)
    assert "w1 sent a probe to be answered at in-process://nowhere, where nobody was introduced" in caplog.text


def test_an_answer_that_cannot_leave_holds_nobody_up(start_cluster: StartCluster) -> None:
    """Its echo may take PATIENCE_S; what comes after the probe is not waited for so long."""
    cluster = start_cluster("w0")
    mute = cluster.transports["mute"] = cluster.transport_of("mute")
    address = mute.open_inbox().address  # which lets nobody in
    cluster.coordinator.send("w0", Introduce(epoch=0, peers=(address,)))
    with closing(cluster.outbox_to(mute, "w0")) as outbox:
        outbox.send(Probe(epoch=0, number=1, reply_to=address), timeout_s=PATIENCE_S)
        outbox.send(Probe(epoch=0, number=2, reply_to=address), timeout_s=PATIENCE_S)
    cluster.coordinator.send("w0", load_of("w0"))
    assert isinstance(cluster.coordinator.next(Loaded, Failed).message, Loaded)


def test_an_introduction_lasts_until_the_coordinator_ends_it(start_cluster: StartCluster) -> None:
    cluster = start_cluster("w0", "w1", "w2")
    cluster.introduce("w0", "w1", "w2")
    neighbours = (cluster.address("w1"), cluster.coordinator.inbox.address)
    cluster.coordinator.send("w0", load_of("w0", embedding=False, neighbours=neighbours))
    cluster.coordinator.next(Loaded)
    for peer in ("w1", "w2"):
        with closing(cluster.outbox_to(cluster.transports[peer], "w0")) as outbox:
            outbox.send(Probe(epoch=0, number=1, reply_to=cluster.address(peer)), timeout_s=PATIENCE_S)
    cluster.coordinator.send("w0", Dismiss(epoch=0, workers=("w2",)))
    cluster.coordinator.send("w0", load_of("w0", epoch=2, embedding=False, neighbours=neighbours))
    cluster.coordinator.next(Loaded)  # by now it has heard
    with closing(cluster.outbox_to(cluster.transports["w2"], "w0")) as outbox, pytest.raises(PeerTimeoutError):
        outbox.send(Probe(epoch=0, number=2, reply_to=cluster.address("w2")), timeout_s=0.05)


def test_only_the_coordinator_asks_for_measurements(
    start_cluster: StartCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Orders of a peer are refused, and are no failure of the one who refuses."""
    cluster = start_cluster("w0", "w1")
    cluster.introduce("w0", "w1")
    cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(cluster.address("w1"),)))
    cluster.coordinator.next(LinksProbed)  # by now they know one another
    for message in (request(), ProbeLinks(epoch=0, peers=()), Introduce(epoch=0, peers=())):
        with closing(cluster.outbox_to(cluster.transports["w1"], "w0")) as outbox:
            outbox.send(message, timeout_s=PATIENCE_S)
    cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(cluster.address("w1"),)))
    assert isinstance(cluster.coordinator.next(LinksProbed, Failed).message, LinksProbed)
    cluster.coordinator.send("w0", load_of("w0"))
    assert isinstance(cluster.coordinator.next(Loaded, Failed).message, Loaded)  # by now it has seen them all
    assert "refused a message: w1 sent a Profile, which is not its to send" in caplog.text


def test_links_are_measured_over_real_sockets() -> None:
    def transport_of(name: str) -> Transport:
        return ZmqTransport(name, KeyPair.generate())

    with closing(Cluster(transport_of, echo_s=PATIENCE_S)) as cluster:
        cluster.start("w0")
        cluster.start("w1")
        cluster.introduce("w0", "w1")
        cluster.coordinator.send("w0", ProbeLinks(epoch=0, peers=(cluster.address("w1"),)))
        probed = cluster.coordinator.next(LinksProbed, Failed).message
        assert isinstance(probed, LinksProbed)
        (link,) = probed.links
        assert 0 < link.latency_s < 1
        assert link.bandwidth_bytes_per_s > 1e5
