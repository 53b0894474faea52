"""What a cluster is asked to be: the links and machines of its nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

MTU_BYTES = 9000  # six times fewer frames than at 1500, so six times less of the cores that the nodes need
MAX_CONTROL_BYTES = 1 << 17  # of a message between lab and switch
PROBE_BYTES = 64  # the small message whose RTT is measured


class LabError(RuntimeError):
    """The lab cannot be made, or a part of it has gone: says which and what the system answered."""


@dataclass(frozen=True)
class Link:
    """One direction of one node's connection. A frame from A to B passes A's `up`, then B's `down`."""

    rate_bits_per_s: float
    delay_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_bits_per_s) and self.rate_bits_per_s > 0):
            raise ValueError(f"a link's rate must be above 0 bit/s, not {self.rate_bits_per_s}")
        if not (math.isfinite(self.delay_s) and self.delay_s >= 0):
            raise ValueError(f"a link's delay must be at least 0 s, not {self.delay_s}")

    def crossing_s(self, num_bytes: int) -> float:
        """Seconds from the first bit in to the last bit out, with nothing queued ahead."""
        return num_bytes * 8 / self.rate_bits_per_s + self.delay_s


@dataclass(frozen=True)
class NodeConfig:
    """One machine of the cluster.

    `cores` are the cores its pinned processes may run on (empty: all); `cpu_share` is how many cores' worth of time
    they may use together (0.5 is half of one core; None: no limit). Between nodes of different sites, the lab's
    `between_sites_s` comes on top of the delays of both links.
    """

    name: str
    up: Link
    down: Link
    cores: tuple[int, ...] = ()
    cpu_share: float | None = None
    site: str = ""

    def __post_init__(self) -> None:
        if self.cpu_share is not None and self.cpu_share <= 0:
            raise ValueError(f"{self.name}: cpu_share must be above 0, not {self.cpu_share}")


@dataclass(frozen=True)
class Traffic:
    """Ethernet frames, headers included, that reached the receiver, and those lost to a full queue or a cut."""

    num_bytes: int
    num_frames: int
    num_lost_frames: int


@dataclass(frozen=True)
class SwitchLoad:
    """What the emulation itself costs and how well it keeps time.

    A frame is late when it was delivered more than 0.5 ms after the model's time for it: many of them mean that the
    switch got no core when it needed one, and that the measurement shows the lab and not the network. Few of them prove
    nothing: how long a frame waited before the switch first saw it is not in these figures.
    """

    cpu_s: float
    num_frames: int
    num_late_frames: int
    worst_lateness_s: float
