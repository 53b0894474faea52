"""Which node of a Ray cluster a worker goes to: one worker for each GPU of a node, or so many for a node without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from butterfly.cluster.ray_words import RayNode
from butterfly.errors import LaunchError


class Place(NamedTuple):
    """Room for one worker: its share of a node."""

    node: RayNode
    num_cpus: float
    num_gpus: float


class Places:
    """Who is where. A worker that has ended keeps its place: it is the one to come back to it.

    A retired worker is not expected back. While its node is there nobody else comes to its place, since it was drained
    so that the node may be taken away; then the place is nobody's.

    Nodes that offer Ray no CPU hold no worker: that is how a head node is kept free.
    """

    def __init__(self, workers_per_node: int = 1) -> None:
        self._workers_per_node = workers_per_node
        self._nodes: tuple[RayNode, ...] = ()
        self._homes: dict[str, RayNode] = {}  # of each worker that was ever placed
        self._retired: set[str] = set()

    @property
    def nodes(self) -> tuple[RayNode, ...]:
        return self._nodes

    def see(self, nodes: Sequence[RayNode]) -> None:
        """These are the nodes from now on."""
        self._nodes = tuple(nodes)
        there = {node.node_id for node in nodes}
        for name in [name for name in self._retired if self._homes[name].node_id not in there]:
            del self._homes[name]
            self._retired.remove(name)

    def take(self, worker: str) -> Place:
        """Return a place for this worker: where it was, or else on the emptiest and largest node.

        Raises LaunchError that says what there is.
        """
        before = self._homes.get(worker)
        taken = Counter(home.node_id for name, home in self._homes.items() if name != worker)
        free = [node for node in self._nodes if taken[node.node_id] < self._num_places(node)]
        if not free:
            raise LaunchError(self._complain(worker))

        def preference(node: RayNode) -> tuple[bool, float, float, str, str]:
            is_elsewhere = before is None or node.host != before.host  # its id is another one when it came back
            return is_elsewhere, taken[node.node_id], -node.num_cpus, node.host, node.node_id

        node = min(free, key=preference)
        self._homes[worker] = node
        self._retired.discard(worker)
        return self._share(node)

    def retire(self, worker: str) -> None:
        """It was told to end. It may still be given a place again."""
        if worker in self._homes:
            self._retired.add(worker)

    def num_free(self) -> int:
        """Places for workers that nobody has started yet: none is counted that a known worker may come back to."""
        num_places = sum(map(self._num_places, self._nodes))
        return max(0, num_places - len(self._homes))

    def _num_places(self, node: RayNode) -> int:
        if node.num_cpus <= 0:
            return 0
        return int(node.num_gpus) or self._workers_per_node

    def _share(self, node: RayNode) -> Place:
        num_places = self._num_places(node)
        num_cpus = node.num_cpus / num_places
        return Place(node, float(int(num_cpus)) if num_cpus >= 1 else num_cpus, float(node.num_gpus >= 1))

    def _complain(self, worker: str) -> str:
        places = ", ".join(f"{self._num_places(node)} on {node.host}" for node in self._nodes) or "it has no nodes"
        placed = ", ".join(f"{name} on {home.host}" for name, home in self._homes.items()) or "none"
        return f"the Ray cluster has no place for worker {worker} (places: {places}; workers: {placed})"
