"""The emulated clusters, as data: unequal cores, memories, rates and delays; two sites; a useless node.

All nodes share the cores of one machine: a node has a core, or a share of one, and nodes on one core must not want more
than all of it. Memory is what a worker may use, so that a plan must split.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.scenarios import ModelName
from butterfly.specs import Objective, Spec


class EmulatedNode(Spec, frozen=True):
    core: int
    cpu_share: float  # of that core
    memory: str  # as `butterfly serve --memory` takes it
    rate_bits_per_s: float = 1e9
    delay_s: float = 0.000125  # of each direction of its own link
    site: str = ""


class EmulatedCluster(Spec, frozen=True):
    name: str
    what: str  # for people
    model: ModelName
    nodes: tuple[EmulatedNode, ...]
    objective: Objective
    between_sites_s: float = 0.0
    num_streams: int = 8
    context: int = 576


class _Link(NamedTuple):
    rate_bits_per_s: float
    delay_s: float


_LAN = _Link(1e9, 0.000125)
_SLOW = _Link(20e6, 0.005)  # 10 ms more of RTT
_WIFI = _Link(100e6, 0.0015)


def _node(core: int, cpu_share: float, memory: str = "2G", *, link: _Link = _LAN, site: str = "") -> EmulatedNode:
    return EmulatedNode(
        core=core,
        cpu_share=cpu_share,
        memory=memory,
        rate_bits_per_s=link.rate_bits_per_s,
        delay_s=link.delay_s,
        site=site,
    )


CLUSTERS: tuple[EmulatedCluster, ...] = (
    EmulatedCluster(
        name="two-equal",
        what="two equal nodes, 1 Gb/s",
        model="smollm2",
        nodes=(_node(0, 1.0), _node(1, 1.0)),
        objective="throughput",
    ),
    EmulatedCluster(
        name="two-unequal",
        what="a node and one of 0.4 of its speed, 1 Gb/s",
        model="smollm2",
        nodes=(_node(0, 0.4), _node(1, 1.0)),
        objective="throughput",
    ),
    EmulatedCluster(
        name="three-unequal",
        what="speeds of 0.3, 1 and 0.6, 1 Gb/s",
        model="smollm2",
        nodes=(_node(0, 0.3), _node(1, 1.0), _node(0, 0.6)),
        objective="throughput",
    ),
    EmulatedCluster(
        name="slow-link",
        what="three nodes of 0.6, 0.9 and 0.4, the second behind 20 Mb/s and 10 ms of RTT",
        model="smollm2",
        nodes=(_node(0, 0.6), _node(1, 0.9, link=_SLOW), _node(0, 0.4)),
        objective="balanced",
    ),
    EmulatedCluster(
        name="useless-node",
        what="speeds of 1 and 0.9, and a third of 0.1 behind 20 Mb/s and 10 ms of RTT",
        model="smollm2",
        nodes=(_node(0, 0.1, link=_SLOW), _node(0, 0.9), _node(1, 1.0)),
        objective="throughput",
    ),
    EmulatedCluster(
        name="two-sites",
        what="two sites of two nodes each, 20 ms of RTT between them; nothing fits on one site",
        model="smollm2",
        nodes=(
            _node(0, 0.5, "50M", site="a"),
            _node(1, 0.5, "50M", site="b"),
            _node(0, 0.5, "50M", site="a"),
            _node(1, 0.5, "50M", site="b"),
        ),
        objective="latency",
        between_sites_s=0.010,
        num_streams=2,
        context=256,
    ),
    EmulatedCluster(
        name="wifi",
        what="two nodes on 1 Gb/s and a faster one on Wi-Fi (100 Mb/s, 3 ms of RTT), half the model fits on each",
        model="smollm2",
        nodes=(_node(0, 0.5, "75M"), _node(0, 0.5, "75M"), _node(1, 1.0, "75M", link=_WIFI)),
        objective="latency",
        num_streams=2,
        context=256,
    ),
    EmulatedCluster(
        name="large-model",
        what="1.07B on two nodes of 1 and 0.6, 1 Gb/s",
        model="llama-1b",
        nodes=(_node(0, 0.6), _node(1, 1.0)),
        objective="throughput",
        num_streams=4,
    ),
    EmulatedCluster(
        name="small-memories",
        what="1.07B (over 600 MB) on four nodes with 300 MB each, speeds of 0.5, 0.6, 0.5 and 0.4, 1 Gb/s",
        model="llama-1b",
        nodes=(_node(0, 0.5, "300M"), _node(1, 0.6, "300M"), _node(0, 0.5, "300M"), _node(1, 0.4, "300M")),
        objective="latency",
        num_streams=1,
    ),
)
