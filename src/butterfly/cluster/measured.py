"""What is known by measurement of the workers that are there: their profiles and the links between them."""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.specs import ClusterSpec, LinkSpec, NodeSpec


class MeasuredCluster:
    """Grows with each measurement, shrinks with each loss: a worker that comes back is measured anew."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeSpec] = {}
        self._links: dict[tuple[str, str], LinkSpec] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def add(self, cluster: ClusterSpec) -> None:
        """Take in nodes and links; what was known of the same ones gives way."""
        self._nodes.update((node.name, node) for node in cluster.nodes)
        self._links.update(((link.source, link.target), link) for link in cluster.links)

    def remove(self, name: str) -> None:
        self._nodes.pop(name, None)
        self._links = {ends: link for ends, link in self._links.items() if name not in ends}

    def spec(self, order: Sequence[str]) -> ClusterSpec:
        """Return the border form, with the nodes in this order of names; names that are not known do not matter."""
        nodes = tuple(self._nodes[name] for name in order if name in self._nodes)
        return ClusterSpec(nodes=nodes, links=tuple(self._links.values()))
