"""Monitoring: the names and units of every figure Butterfly shows, and where they add up.

Promises
    `METRICS` is the one table of every metric: name, kind, unit, help, labels. `Metrics` counts what it
    is told and renders Prometheus text from a registry of its own, so two servers in one process never
    share a figure. `timings` turns the stamps of stages into compute and software time by pure
    functions; `StepStatistics` keeps bounded medians of them for `--stats` and `/status`; `BusyShare` says
    how much of the time each stage computed.
Must not know
    Who tells it. It never asks, opens no port and reads no clock.
Threads
    `Metrics`, `StepStatistics` and `BusyShare` may be told in one thread and read in another.
The typical one-hour change, a new metric
    One row in `metrics.METRICS`, one line in the method of `Metrics` that learns the figure, one row in
    `tests/unit/monitoring/test_metrics.py`.
"""

from butterfly.monitoring.busy import BusyShare
from butterfly.monitoring.metrics import METRICS, Metrics, MetricSpec, RefusalReason
from butterfly.monitoring.statistics import StageSummary, StepStatistics, StepSummary
from butterfly.monitoring.timings import compute_s, sent_bytes, software_s_per_hop

__all__ = [
    "METRICS",
    "BusyShare",
    "MetricSpec",
    "Metrics",
    "RefusalReason",
    "StageSummary",
    "StepStatistics",
    "StepSummary",
    "compute_s",
    "sent_bytes",
    "software_s_per_hop",
]
