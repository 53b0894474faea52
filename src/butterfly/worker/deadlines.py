"""How long a worker waits for what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Every wait of a worker ends after one of these."""

    join_s: float = 30.0
    coordinator_silence_s: float = 10.0  # it sends a Ping every second
    send_s: float = 5.0
    heartbeat_interval_s: float = 0.25
    echo_s: float = 5.0  # of a peer, when a link is measured
