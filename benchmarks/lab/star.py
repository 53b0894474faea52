"""The model of the network: a store-and-forward star, as a pure state machine over times and frames.

    sender --- up: wait in FIFO, size / rate, delay ---> hub --- down: wait in FIFO, size / rate, delay ---> receiver

Between nodes of different sites, the way through the hub takes a further delay, the same for all.

Both queues drop what comes when they hold more than QUEUE_S seconds of sending (but at least QUEUE_BYTES, so that a
slow link takes a TCP burst). A frame that waits keeps its time when the link is reshaped: the new rate and delay are
those of the frames that come after it. A frame whose node is cut when it would move on is lost.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

from benchmarks.lab.shapes import Link, Traffic

QUEUE_S = 0.1
QUEUE_BYTES = 256 * 1024
LATE_S = 0.0005
MAC_PREFIX = bytes((0x02, 0xBF, 0, 0))  # locally administered; the last two bytes are the node's index


def mac_address(node: int) -> str:
    """The hardware address that makes the hub send a frame to node number `node`."""
    return (MAC_PREFIX + node.to_bytes(2, "big")).hex(":")


class _Queue:
    """A link at work: when does a frame that comes now leave its far end?"""

    def __init__(self, link: Link) -> None:
        self.free_s = self.last_exit_s = -math.inf
        self.reshape(link)

    def reshape(self, link: Link) -> None:
        self.link = link
        self.s_per_byte = 8 / link.rate_bits_per_s
        self.longest_wait_s = max(QUEUE_S, QUEUE_BYTES * self.s_per_byte)

    def enter(self, now_s: float, num_bytes: int) -> float | None:
        """The exit time, or None when the queue is full."""
        start_s = max(now_s, self.free_s)
        if start_s - now_s > self.longest_wait_s:
            return None
        self.free_s = start_s + num_bytes * self.s_per_byte
        # A shorter delay must not let a frame overtake those before it.
        self.last_exit_s = max(self.free_s + self.link.delay_s, self.last_exit_s)
        return self.last_exit_s


class Star:
    """All queues of the cluster. Nodes are numbers; times are seconds of one clock, given by the caller."""

    def __init__(
        self, links: Sequence[tuple[Link, Link]], sites: Sequence[str] = (), between_sites_s: float = 0.0
    ) -> None:
        """`links` holds each node's up and down, `sites` where it stands; frames between two sites take longer."""
        self._sites = list(sites) or [""] * len(links)
        self._between_sites_s = between_sites_s
        self._up = [_Queue(up) for up, _ in links]
        self._down = [_Queue(down) for _, down in links]
        self._cut = [False] * len(links)
        self._shortest_down_s = min(queue.link.delay_s for queue in self._down)
        self._number = 0  # keeps heap entries of one instant in order, and frames out of the comparison
        self._to_hub: list[tuple[float, int, int, int, bytes]] = []  # time, number, sender, receiver, frame
        self._to_node: list[tuple[float, int, int, int, bytes]] = []
        self._counts = {(a, b): [0, 0, 0] for a in range(len(links)) for b in range(len(links)) if a != b}
        self.num_late_frames = 0
        self.worst_lateness_s = 0.0

    def accept(self, now_s: float, sender: int, frame: bytes) -> None:
        """A frame came out of a node's interface. One that no node of the star is meant to get is forgotten."""
        receivers = self._receivers(sender, frame)
        if not receivers:
            return
        hub_s = None if self._cut[sender] else self._up[sender].enter(now_s, len(frame))
        for receiver in receivers:
            if hub_s is None:
                self._counts[sender, receiver][2] += 1
                continue
            self._number += 1
            far = self._sites[sender] != self._sites[receiver]
            at_s = hub_s + self._between_sites_s if far else hub_s
            heapq.heappush(self._to_hub, (at_s, self._number, sender, receiver, frame))

    def deliveries(self, now_s: float) -> Iterator[tuple[int, bytes]]:
        """Receiver and frame of all that is due, in order of time."""
        self._pass_hub(now_s)
        while self._to_node and self._to_node[0][0] <= now_s:
            due_s, _, sender, receiver, frame = heapq.heappop(self._to_node)
            count = self._counts[sender, receiver]
            if self._cut[receiver]:
                count[2] += 1
                continue
            count[0] += len(frame)
            count[1] += 1
            lateness_s = now_s - due_s
            self.num_late_frames += lateness_s > LATE_S
            self.worst_lateness_s = max(self.worst_lateness_s, lateness_s)
            yield receiver, frame

    @property
    def num_waiting(self) -> int:
        """Frames on their way."""
        return len(self._to_hub) + len(self._to_node)

    def wake_s(self) -> float:
        """When to ask for deliveries again: never after the next one is due; infinite when nothing is on its way.

        The hub itself needs no wake-up: what it decides depends on the frames' times, not on when it is asked.
        """
        hub_s = self._to_hub[0][0] + self._shortest_down_s if self._to_hub else math.inf
        return min(hub_s, self._to_node[0][0]) if self._to_node else hub_s

    def reshape(self, now_s: float, node: int, up: Link | None = None, down: Link | None = None) -> None:
        self._pass_hub(now_s)
        if up is not None:
            self._up[node].reshape(up)
        if down is not None:
            self._down[node].reshape(down)
        self._shortest_down_s = min(queue.link.delay_s for queue in self._down)

    def set_cut(self, now_s: float, node: int, cut: bool) -> None:
        self._pass_hub(now_s)
        self._cut[node] = cut

    def traffic(self) -> dict[tuple[int, int], Traffic]:
        return {pair: Traffic(*counts) for pair, counts in self._counts.items()}

    def _pass_hub(self, now_s: float) -> None:
        while self._to_hub and self._to_hub[0][0] <= now_s:
            hub_s, number, sender, receiver, frame = heapq.heappop(self._to_hub)
            lost = self._cut[sender] or self._cut[receiver]
            exit_s = None if lost else self._down[receiver].enter(hub_s, len(frame))
            if exit_s is None:
                self._counts[sender, receiver][2] += 1
            else:
                heapq.heappush(self._to_node, (exit_s, number, sender, receiver, frame))

    def _receivers(self, sender: int, frame: bytes) -> Sequence[int]:
        if frame[0] & 1:  # broadcast or multicast
            return [node for node in range(len(self._up)) if node != sender]
        node = int.from_bytes(frame[4:6], "big")
        known = frame[:4] == MAC_PREFIX and node < len(self._up) and node != sender
        return (node,) if known else ()
