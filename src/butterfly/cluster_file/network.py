"""From what people say of a network, site by site, to a link for each pair of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from butterfly.specs import CodecSpec, LinkSpec, NodeSpec

COORDINATOR = "coordinator"  # the name of the coordinator's end of a link

_BY_NAME, _BY_HOST, _BY_SITE = 3, 2, 1  # how specific a word is that stands for a node or the coordinator


@dataclass(frozen=True)
class Rates:
    latency_s: float
    bandwidth_bytes_per_s: float
    software_s: float
    codecs: tuple[CodecSpec, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is said of all pairs from the one to the other: nodes, sites, or the coordinator."""

    source: str
    target: str
    rates: Rates

    def link(self, source: str, target: str) -> LinkSpec:
        return make_link(source, target, self.rates)


@dataclass(frozen=True)
class Network:
    """Who stands where, and what is said of the links."""

    nodes: tuple[NodeSpec, ...]
    entries: tuple[Entry, ...]  # links inside a site are an entry from the site to itself
    defaults: Rates | None
    host: str  # the node or site where the coordinator runs; empty: not known

    def links(self) -> tuple[LinkSpec, ...]:
        """Entries between two ends by name as they stand; then each pair of which something else speaks."""
        ends = [COORDINATOR, *(node.name for node in self.nodes)]
        words = {end: self._words(end) for end in ends}
        by_name = [entry for entry in self.entries if entry.source in words and entry.target in words]
        named = {(entry.source, entry.target) for entry in by_name}
        found = [entry.link(entry.source, entry.target) for entry in by_name]
        for source, target in permutations(ends, 2):
            if (source, target) in named or (target, source) in named:
                continue
            if self.host and {source, target} == {COORDINATOR, self.host}:
                continue  # one machine
            rates = _most_specific(self.entries, words[source], words[target]) or self.defaults
            if rates is not None:
                found.append(make_link(source, target, rates))
        return tuple(found)

    def _words(self, end: str) -> dict[str, int]:
        """Each word that stands for this end, with how specific it is."""
        sites = {node.name: node.site for node in self.nodes}
        if end != COORDINATOR:
            return self._with_site(end, _BY_NAME, sites[end])
        if self.host in sites:
            return {COORDINATOR: _BY_NAME} | self._with_site(self.host, _BY_HOST, sites[self.host])
        return {COORDINATOR: _BY_NAME} | ({self.host: _BY_SITE} if self.host else {})

    def _with_site(self, name: str, specific: int, site: str) -> dict[str, int]:
        is_site = site and all(site != node.name for node in self.nodes)  # a name that both have is the node's
        return {name: specific} | ({site: _BY_SITE} if is_site else {})


def make_link(source: str, target: str, rates: Rates) -> LinkSpec:
    return LinkSpec(
        source=source,
        target=target,
        latency_s=rates.latency_s,
        bandwidth_bytes_per_s=rates.bandwidth_bytes_per_s,
        software_s=rates.software_s,
        codecs=rates.codecs,
    )


def _most_specific(entries: Sequence[Entry], source: dict[str, int], target: dict[str, int]) -> Rates | None:
    best, rates = (0, False), None
    for entry in entries:
        for a, b, is_forward in ((entry.source, entry.target, True), (entry.target, entry.source, False)):
            if a in source and b in target and (source[a] + target[b], is_forward) > best:
                best, rates = (source[a] + target[b], is_forward), entry.rates
    return rates
