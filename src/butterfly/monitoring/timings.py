"""What the stamps of one step say, as pure functions.

Every stage stamps on a clock of its own, so a time on one stage minus a time on another means nothing.
Two kinds of difference are sound: finish minus start within a stage, and the duration of the whole step
on the coordinator's clock. Everything below is built from those.
"""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.specs import StageTiming


def compute_s(timing: StageTiming) -> float:
    """Return how long one stage computed for this step."""
    return timing.finished_s - timing.started_s


def software_s_per_hop(timings: Sequence[StageTiming], total_s: float) -> float:
    """Return the mean time per message that no stage spent computing.

    `total_s` is the step as the coordinator saw it, from sending the step to holding its samples. S stages
    mean S + 1 messages: one into each stage and one back. The figure holds encoding, system calls, the
    wire and the wait for a busy stage: with one step in flight on one machine it is the software of a
    hop; with links it includes their latency; with several steps in flight also queueing.
    """
    outside_s = total_s - sum(compute_s(timing) for timing in timings)
    return max(0.0, outside_s) / (len(timings) + 1)


def sent_bytes(timings: Sequence[StageTiming]) -> int:
    """Return the bytes of all messages that brought this step from stage to stage (not the result)."""
    return sum(timing.received_bytes for timing in timings)
