"""Differences of Butterfly's own counters."""

from __future__ import annotations

import pytest
from benchmarks.server_metrics import Look, parse_samples, usage_between

from butterfly.monitoring import Metrics
from butterfly.specs import StageTiming


def timing(worker: str, compute_s: float) -> StageTiming:
    return StageTiming(worker=worker, received_s=0.0, started_s=1.0, finished_s=1.0 + compute_s, received_bytes=100)


def test_usage_is_what_was_added_between_two_looks() -> None:
    metrics = Metrics()
    metrics.step_finished([timing("a", 9.0)], 9.0)
    before = Look(10.0, parse_samples(metrics.render().decode()))
    for _ in range(2):
        metrics.step_finished([timing("a", 0.5), timing("b", 1.5)], 2.3)
    metrics.tokens_computed(num_prompt=7, num_output=2)
    after = Look(20.0, parse_samples(metrics.render().decode()))

    usage = usage_between(before, after)

    assert usage.busy_shares == {"a": pytest.approx(0.1), "b": pytest.approx(0.3)}
    assert usage.num_steps == 2
    assert usage.software_s_per_hop == pytest.approx(0.1)
    assert usage.sent_bytes_per_step == pytest.approx(200)
    assert (usage.num_prompt_tokens, usage.num_output_tokens) == (7, 2)


def test_an_idle_server_used_nothing() -> None:
    samples = parse_samples(Metrics().render().decode())
    usage = usage_between(Look(0.0, samples), Look(1.0, samples))
    assert usage == ({}, 0, 0.0, 0.0, 0, 0)
