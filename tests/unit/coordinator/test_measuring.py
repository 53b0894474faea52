"""Who is asked what, in which order, and what cluster comes out: told, not measured."""

from __future__ import annotations

from math import inf, nan

import pytest
from msgspec.structs import replace

from butterfly.coordinator.measuring import Measuring, Outgoing, Waiting
from butterfly.errors import ProtocolError
from butterfly.messages import Introduce, LinksProbed, ProbeLinks, Profiled
from butterfly.specs import ComputeProfile, LinkSpec
from tests.unit.coordinator.samples import address, link, make_node, profile, question, table

HOSTS = {"a1": "a", "a2": "a", "b1": "b"}


def make_measuring(hosts: dict[str, str]) -> Measuring:
    nodes = [make_node(name) for name in hosts]
    return Measuring(nodes, hosts, {name: address(name) for name in hosts}, address("coordinator"), question())


def profiled(measuring: Measuring, name: str, layer_s: float = 0.001) -> list[Outgoing]:
    return measuring.take(Profiled(epoch=0, worker=name, profile=profile(layer_s)), name)


def probed(measuring: Measuring, name: str, *links: LinkSpec) -> list[Outgoing]:
    return measuring.take(LinksProbed(epoch=0, worker=name, links=links), name)


def home_of(name: str) -> LinkSpec:
    return link(name, "coordinator", 0.002)


def test_workers_of_one_host_profile_themselves_one_after_the_other() -> None:
    measuring = make_measuring(HOSTS)
    assert measuring.start() == [Outgoing("a1", question()), Outgoing("b1", question())]
    assert measuring.waiting == Waiting(("a1", "b1"), "compute")
    assert profiled(measuring, "b1") == []
    assert measuring.waiting == Waiting(("a1",), "compute")
    assert profiled(measuring, "a1") == [Outgoing("a2", question())]
    assert measuring.waiting == Waiting(("a2",), "compute")


def test_then_they_meet_and_one_after_the_other_probes_its_links() -> None:
    measuring = make_measuring(HOSTS)
    measuring.start()
    profiled(measuring, "b1")
    profiled(measuring, "a1")
    peers = {name: tuple(address(other) for other in HOSTS if other != name) for name in HOSTS}
    meeting = [Outgoing(name, Introduce(epoch=0, peers=peers[name])) for name in HOSTS]
    home = address("coordinator")
    ask = {name: Outgoing(name, ProbeLinks(epoch=0, peers=(home, *peers[name]))) for name in HOSTS}
    assert profiled(measuring, "a2") == [*meeting, ask["a1"]]
    assert measuring.waiting == Waiting(("a1",), "links")
    assert probed(measuring, "a1", home_of("a1"), link("a1", "a2"), link("a1", "b1")) == [ask["a2"]]
    assert probed(measuring, "a2", home_of("a2"), link("a2", "a1"), link("a2", "b1")) == [ask["b1"]]
    assert measuring.waiting == Waiting(("b1",), "links")
    assert probed(measuring, "b1", home_of("b1"), link("b1", "a1"), link("b1", "a2")) == []
    assert measuring.waiting is None


def test_the_cluster_has_every_profile_and_every_link_with_the_coordinators_own() -> None:
    measuring = make_measuring({"w0": "x", "w1": "y"})
    measuring.start()
    profiled(measuring, "w1", layer_s=0.007)
    profiled(measuring, "w0", layer_s=0.005)
    links = [home_of("w0"), link("w0", "w1", 0.004)], [home_of("w1"), link("w1", "w0", 0.006)]
    probed(measuring, "w0", *links[0])
    probed(measuring, "w1", *links[1])
    assert measuring.waiting is None
    cluster = measuring.cluster()
    assert cluster.nodes == (
        replace(make_node("w0"), profile=profile(0.005)),
        replace(make_node("w1"), profile=profile(0.007)),
    )
    assert cluster.links == (*links[0], *links[1])


def test_one_worker_has_no_link_but_that_to_the_coordinator() -> None:
    measuring = make_measuring({"w0": "x"})
    measuring.start()
    _, ask = profiled(measuring, "w0")
    assert ask == Outgoing("w0", ProbeLinks(epoch=0, peers=(address("coordinator"),)))
    probed(measuring, "w0", home_of("w0"))
    assert measuring.waiting is None
    assert measuring.cluster().links == (home_of("w0"),)


def test_what_nobody_asked_for_is_refused() -> None:
    measuring = make_measuring(HOSTS)
    measuring.start()
    with pytest.raises(ProtocolError, match="a2 sent a profile of a2 that nobody asked for"):
        profiled(measuring, "a2")
    with pytest.raises(ProtocolError, match="b1 sent a profile of a1 that nobody asked for"):
        measuring.take(Profiled(epoch=0, worker="a1", profile=profile()), "b1")
    with pytest.raises(ProtocolError, match="a1 sent links of a1 that nobody asked for"):
        probed(measuring, "a1", link("a1", "a2"), link("a1", "b1"))
    assert measuring.waiting == Waiting(("a1", "b1"), "compute")


@pytest.mark.parametrize(
    "wrong",
    [
        profile(num_kinds=2),
        profile(layer_s=-0.001),
        profile(layer_s=nan),
        profile(layer_s=inf),
        replace(profile(), step_s=-1.0),
        replace(profile(), head=replace(table(0.1, 0.2), num_tokens=(2, 1))),
        replace(profile(), head=replace(table(0.1, 0.2), num_tokens=(1,))),
        replace(profile(), head=replace(table(0.1), contexts=(0, 1))),
        replace(profile(), head=replace(table(), contexts=(), seconds=())),
    ],
)
def test_a_profile_that_cannot_be_is_refused_by_name(wrong: ComputeProfile) -> None:
    measuring = make_measuring({"w0": "x"})
    measuring.start()
    with pytest.raises(ProtocolError, match="w0 sent a profile") as caught:
        measuring.take(Profiled(epoch=0, worker="w0", profile=wrong), "w0")
    assert caught.value.peer == "w0"


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        (link("w0", "w1"),),
        (link("w0", "coordinator"),),
        (link("w0", "coordinator"), link("w0", "w0")),
        (link("w0", "coordinator"), link("w1", "w0")),
        (link("w0", "coordinator"), link("w0", "w1"), link("w0", "w1")),
        (link("w0", "coordinator"), link("w0", "w1", latency_s=-0.001)),
        (link("w0", "coordinator"), link("w0", "w1", latency_s=nan)),
        (link("w0", "coordinator"), replace(link("w0", "w1"), bandwidth_bytes_per_s=0.0)),
        (link("w0", "coordinator"), replace(link("w0", "w1"), bandwidth_bytes_per_s=inf)),
        (link("w0", "coordinator"), replace(link("w0", "w1"), software_s=-0.1)),
    ],
)
def test_links_that_cannot_be_are_refused_by_name(wrong: tuple[LinkSpec, ...]) -> None:
    measuring = make_measuring({"w0": "x", "w1": "x"})
    measuring.start()
    profiled(measuring, "w0")
    profiled(measuring, "w1")
    with pytest.raises(ProtocolError, match="w0 sent"):
        probed(measuring, "w0", *wrong)
