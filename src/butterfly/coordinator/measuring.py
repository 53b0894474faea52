"""How a cluster is measured: who is asked what, and what follows from the answers.

1. Every worker profiles itself: one at a time on each host, since those share its cores; hosts side by side.
2. The workers are introduced to one another, and one after the other measures its links to all others and to the
   coordinator, which only has to echo.

Nodes that are known already, and may be serving, are introduced to the new ones and echo; nothing else is asked of
them. A link from one of them to a new one is taken to be what the way back is.

No sockets and no clock here: messages go out and answers come in as values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from butterfly.coordinator.measured_checks import check_links, check_profile
from butterfly.errors import ProtocolError
from butterfly.messages import Introduce, LinksProbed, Message, PeerAddress, ProbeLinks, Profile, Profiled
from butterfly.partitioning.costs import COORDINATOR
from butterfly.specs import ClusterSpec, ComputeProfile, LinkSpec, NodeSpec


class Outgoing(NamedTuple):
    """A message for a worker, to be sent at once and in order."""

    worker: str
    message: Message


class Waiting(NamedTuple):
    """Who is being measured now."""

    workers: tuple[str, ...]
    what: str


class Measuring:
    """The measurement of one cluster. `start`, then `take` each answer; after each, send what they return.

    `hosts` says which workers share a machine, `question` what each is asked to profile, `known` who was measured
    before.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        hosts: Mapping[str, str],
        addresses: Mapping[str, PeerAddress],
        home: PeerAddress,
        question: Profile,
        known: ClusterSpec = ClusterSpec(nodes=()),  # noqa: B008 - frozen
    ) -> None:
        self._nodes, self._addresses, self._home, self._question = tuple(nodes), addresses, home, question
        self._known = known
        self._names = tuple(node.name for node in nodes)
        self._everybody = (*(node.name for node in known.nodes), *self._names)
        by_host: dict[str, deque[str]] = {}
        for name in self._names:
            by_host.setdefault(hosts[name], deque()).append(name)
        self._unprofiled = list(by_host.values())  # of each host, in order; the first of each is at it
        self._profiles: dict[str, ComputeProfile] = {}
        self._unprobed = deque(self._names)  # the first is at it
        self._links: dict[str, tuple[LinkSpec, ...]] = {}

    @property
    def waiting(self) -> Waiting | None:
        """Who is being measured; None when everything is."""
        if len(self._profiles) < len(self._names):
            return Waiting(tuple(host[0] for host in self._unprofiled if host), "compute")
        if self._unprobed:
            return Waiting((self._unprobed[0],), "links")
        return None

    def cluster(self) -> ClusterSpec:
        """What was measured, once nobody is waited for."""
        nodes = tuple(replace(node, profile=self._profiles[node.name]) for node in self._nodes)
        links = [link for name in self._names for link in self._links[name]]
        known = {node.name for node in self._known.nodes}
        back = [replace(link, source=link.target, target=link.source) for link in links if link.target in known]
        return ClusterSpec(nodes=(*self._known.nodes, *nodes), links=(*self._known.links, *back, *links))

    def start(self) -> list[Outgoing]:
        return [Outgoing(host[0], self._question) for host in self._unprofiled]

    def take(self, answer: Profiled | LinksProbed, sender: str) -> list[Outgoing]:
        """Return what to send next. Raises ProtocolError naming the sender for what was not asked, or cannot be."""
        return self._profiled(answer, sender) if isinstance(answer, Profiled) else self._links_probed(answer, sender)

    def _profiled(self, answer: Profiled, sender: str) -> list[Outgoing]:
        host = next((host for host in self._unprofiled if host and host[0] == sender), None)
        if host is None or answer.worker != sender:
            raise ProtocolError(f"{sender} sent a profile of {answer.worker} that nobody asked for", sender)
        check_profile(answer.profile, len(self._question.layers), sender)
        host.popleft()
        self._profiles[sender] = answer.profile
        if host:
            return [Outgoing(host[0], self._question)]
        return self._introductions() if len(self._profiles) == len(self._names) else []

    def _introductions(self) -> list[Outgoing]:
        epoch = self._question.epoch
        new = tuple(self._addresses[name] for name in self._names)
        to_known = [Outgoing(node.name, Introduce(epoch=epoch, peers=new)) for node in self._known.nodes]
        to_new = [Outgoing(name, Introduce(epoch=epoch, peers=self._peers(name))) for name in self._names]
        return [*to_known, *to_new, self._ask_for_links()]

    def _ask_for_links(self) -> Outgoing:
        name = self._unprobed[0]
        return Outgoing(name, ProbeLinks(epoch=self._question.epoch, peers=(self._home, *self._peers(name))))

    def _links_probed(self, answer: LinksProbed, sender: str) -> list[Outgoing]:
        if self.waiting != Waiting((sender,), "links") or answer.worker != sender:
            raise ProtocolError(f"{sender} sent links of {answer.worker} that nobody asked for", sender)
        check_links(answer.links, [COORDINATOR, *(name for name in self._everybody if name != sender)], sender)
        self._unprobed.popleft()
        self._links[sender] = answer.links
        return [self._ask_for_links()] if self._unprobed else []

    def _peers(self, name: str) -> tuple[PeerAddress, ...]:
        return tuple(self._addresses[other] for other in self._everybody if other != name)
