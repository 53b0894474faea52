"""What is measured, as data: models, clusters, links, loads.

A node of a cluster has one core and one thread. This machine may have fewer cores than a scenario has nodes; then each
node has a share of one (`cpu_share`), and figures are comparable between arms, not with real machines. Load generators
are not pinned, and compete with the nodes for both arms alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Literal

import msgspec

from butterfly.specs import Spec

ModelName = Literal["smollm2", "llama-1b"]
LoadKind = Literal["decode", "prefill", "streams"]

MODELS: tuple[ModelName, ...] = ("smollm2", "llama-1b")
ONE_WAY_SIDES = 4  # a round trip passes sender's up, receiver's down, and the same back


class LoadShape(Spec, frozen=True):
    """Requests of one shape, `concurrency` at a time. The kind says which figure is read from it:

    decode: 1 / TPOT of a single stream; prefill: prompt tokens / TTFT of a single stream; streams: output tokens of all
    streams per second, prompts included in the time.
    """

    name: str
    kind: LoadKind
    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    warmup: int = 0  # beyond the one short answer to such a prompt with which the load generator begins


class LinkProfile(Spec, frozen=True):
    """The network between all nodes of a cluster, symmetric."""

    name: str
    rate_bits_per_s: float
    rtt_s: float

    @property
    def side_delay_s(self) -> float:
        """Delay of one node's side in one direction."""
        return self.rtt_s / ONE_WAY_SIDES

    @property
    def one_way_s(self) -> float:
        return self.rtt_s / 2


class Scenario(Spec, frozen=True):
    """One model on one cluster under several loads."""

    name: str
    model: ModelName
    nodes: int
    threads: int  # of each node
    loads: tuple[LoadShape, ...]
    link: LinkProfile | None = None  # None: no lab, one process on the loopback device
    cpu_share: float | None = None  # of a core, per node; None: a core of its own
    quick: bool = False  # belongs to the quick selection
    rank: int = 1  # smaller first; 0: the rows that have targets
    with_one_node: bool = False  # a second cluster of ours, on the first node only, is measured in turn

    def load(self, name: str) -> LoadShape:
        """Raises KeyError for a name that is not among the loads."""
        for load in self.loads:
            if load.name == name:
                return load
        raise KeyError(name)

    @property
    def max_concurrency(self) -> int:
        return max(load.concurrency for load in self.loads)

    @property
    def context(self) -> int:
        """Tokens that each sequence must have room for, with some for chat templates and the like."""
        longest = max(load.input_tokens + load.output_tokens for load in self.loads)
        return -(-(longest + 64) // 256) * 256


GIGABIT = LinkProfile(name="1gbit-0.5ms", rate_bits_per_s=1e9, rtt_s=0.0005)
FAST_WAN = LinkProfile(name="100mbit-10ms", rate_bits_per_s=100e6, rtt_s=0.010)
SLOW_WAN = LinkProfile(name="20mbit-40ms", rate_bits_per_s=20e6, rtt_s=0.040)
LINKS = (GIGABIT, FAST_WAN, SLOW_WAN)

DECODE = LoadShape(name="decode", kind="decode", input_tokens=16, output_tokens=96, concurrency=1, requests=2)
PREFILL = LoadShape(name="prefill-512", kind="prefill", input_tokens=512, output_tokens=2, concurrency=1, requests=2)


def streams(concurrency: int) -> LoadShape:
    """A request for each reader, or a few more."""
    return LoadShape(
        name=f"streams-{concurrency}",
        kind="streams",
        input_tokens=64,
        output_tokens=64,
        concurrency=concurrency,
        requests=max(2 if concurrency == 1 else 8, concurrency),
    )


LOADS = (DECODE, PREFILL, streams(1), streams(4), streams(16))
QUICK_LOADS = ("decode", "prefill-512", "streams-16")


def one_worker(model: ModelName, threads: int) -> Scenario:
    return Scenario(
        name=f"one-{model}-{threads}t",
        model=model,
        nodes=1,
        threads=threads,
        loads=LOADS,
        quick=threads == 2,
        rank=0 if model == "llama-1b" else 1,
    )


def cluster(model: ModelName, nodes: int, link: LinkProfile, num_cores: int) -> Scenario:
    """Several nodes with a core each, or an equal share of `num_cores` cores where there are fewer."""
    return Scenario(
        name=f"{ {2: 'two', 4: 'four'}[nodes] }-{model}-{link.name}",
        model=model,
        nodes=nodes,
        threads=1,
        loads=LOADS,
        link=link,
        cpu_share=None if nodes <= num_cores else num_cores / nodes,
        quick=model == "llama-1b" and nodes == 2 and link != SLOW_WAN,
        rank=0 if model == "llama-1b" and nodes == 2 and link != SLOW_WAN else 2,
        with_one_node=nodes == 2 and link == GIGABIT,
    )


def all_scenarios(num_cores: int) -> tuple[Scenario, ...]:
    """Return every scenario for a machine with `num_cores` cores, those with targets first."""
    models: tuple[ModelName, ...] = ("llama-1b", "smollm2")
    ones = [one_worker(model, threads) for model in models for threads in (1, 2) if threads <= num_cores]
    clusters = [cluster(model, nodes, link, num_cores) for nodes in (2, 4) for model in models for link in LINKS]
    return tuple(sorted([*ones, *clusters], key=lambda scenario: scenario.rank))


def select(
    scenarios: Iterable[Scenario], *, patterns: Sequence[str] = (), models: Sequence[str] = (), quick: bool = False
) -> tuple[Scenario, ...]:
    """Return those that match any of the patterns (`*` and `?`; a plain word matches anywhere in the name).

    Quick takes the quick selection, unless a pattern names others, and makes the loads shorter.
    """

    def is_wanted(scenario: Scenario) -> bool:
        if models and scenario.model not in models:
            return False
        if patterns:
            return any(fnmatch(scenario.name, f"*{pattern}*") for pattern in patterns)
        return scenario.quick or not quick

    chosen = (scenario for scenario in scenarios if is_wanted(scenario))
    return tuple(shortened(scenario) if quick else scenario for scenario in chosen)


def shortened(scenario: Scenario) -> Scenario:
    """The loads that say most, with as few requests as have a meaning."""
    loads = tuple(
        msgspec.structs.replace(load, requests=1 if load.kind == "prefill" else load.requests)
        for load in scenario.loads
        if load.name in QUICK_LOADS
    )
    return msgspec.structs.replace(scenario, loads=loads)


# --------------------------------------------------------------------------------------- targets

Better = Literal["higher", "lower"]
Against = Literal["peer", "bound", "one node", "absolute"]


class Target(Spec, frozen=True):
    """A ratio (or seconds, if absolute) that one load of one scenario must reach."""

    scenario: str
    load: str
    against: Against
    value: float
    what: str  # for people
    better: Better = "higher"

    def is_met(self, measured: float) -> bool:
        return measured >= self.value if self.better == "higher" else measured <= self.value


def _targets() -> Iterable[Target]:
    for threads in (1, 2):
        name = f"one-llama-1b-{threads}t"
        thread = f"{threads} thread{'s' if threads > 1 else ''}"
        yield Target(scenario=name, load="decode", against="peer", value=0.8, what=f"one worker, {thread}, decode")
        yield Target(
            scenario=name, load="prefill-512", against="peer", value=1.3, what=f"one worker, {thread}, prefill 512"
        )
    gigabit, wan = f"two-llama-1b-{GIGABIT.name}", f"two-llama-1b-{FAST_WAN.name}"
    yield Target(scenario=gigabit, load="decode", against="peer", value=1.1, what="two nodes, 1 Gb/s, one stream")
    yield Target(scenario=gigabit, load="prefill-512", against="peer", value=4.0, what="two nodes, 1 Gb/s, prefill 512")
    yield Target(scenario=gigabit, load="streams-16", against="peer", value=3.0, what="two nodes, 1 Gb/s, 16 streams")
    yield Target(
        scenario=wan, load="decode", against="peer", value=1.5, what="two nodes, 100 Mb/s, RTT 10 ms, one stream"
    )
    yield Target(
        scenario=gigabit, load="decode", against="bound", value=0.8, what="TPOT bound / TPOT, two nodes, 1 Gb/s"
    )
    yield Target(
        scenario=gigabit, load="decode", against="absolute", value=0.0003, better="lower", what="software per hop"
    )
    for load, what in (("prefill-512", "prefill 512"), ("streams-4", "4 streams"), ("streams-16", "16 streams")):
        yield Target(scenario=gigabit, load=load, against="one node", value=1.0, what=f"a second node, 1 Gb/s, {what}")


TARGETS: tuple[Target, ...] = tuple(_targets())
