"""What Butterfly's own metrics say about the time between two looks at them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.arms import Server
from benchmarks.processes import fetch

_COMPUTE = "butterfly_stage_compute_seconds_sum"
_HOPS, _NUM_STEPS = "butterfly_hop_software_seconds_sum", "butterfly_hop_software_seconds_count"
_SENT = "butterfly_step_sent_bytes_sum"
_TOKENS = "butterfly_computed_tokens_total"

Samples = Mapping[tuple[str, str], float]
"""Value by metric and by worker or role ("" for what has neither)."""


class Look(NamedTuple):
    """Butterfly's counters at one moment of our monotonic clock."""

    at_s: float
    samples: Samples


class Usage(NamedTuple):
    """What happened between two looks. Figures per step are means over prompt and decode steps alike."""

    busy_shares: dict[str, float]  # by worker: share of the time in which its stage computed
    num_steps: int
    software_s_per_hop: float  # links and queueing included, see the metric
    sent_bytes_per_step: float  # from stage to stage, all hops together
    num_prompt_tokens: int
    num_output_tokens: int


def scrape(server: Server) -> Look:
    """Read the metrics of a Butterfly server. Raises ServerFailedError when it does not answer."""
    text = fetch(f"{server.url}/metrics", server.node).decode()
    return Look(time.monotonic(), parse_samples(text))


def parse_samples(text: str) -> Samples:
    return {
        (sample.name, sample.labels.get("worker") or sample.labels.get("role", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in (_COMPUTE, _HOPS, _NUM_STEPS, _SENT, _TOKENS)
    }


def usage_between(before: Look, after: Look) -> Usage:
    """Return what happened from one look to a later one of the same server."""
    grown = {key: value - before.samples.get(key, 0.0) for key, value in after.samples.items()}
    duration_s = after.at_s - before.at_s
    num_steps = grown.get((_NUM_STEPS, ""), 0.0)
    return Usage(
        busy_shares={worker: value / duration_s for (name, worker), value in grown.items() if name == _COMPUTE},
        num_steps=round(num_steps),
        software_s_per_hop=grown.get((_HOPS, ""), 0.0) / max(num_steps, 1.0),
        sent_bytes_per_step=grown.get((_SENT, ""), 0.0) / max(num_steps, 1.0),
        num_prompt_tokens=round(grown.get((_TOKENS, "prompt"), 0.0)),
        num_output_tokens=round(grown.get((_TOKENS, "output"), 0.0)),
    )
