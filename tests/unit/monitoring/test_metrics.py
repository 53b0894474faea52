from __future__ import annotations

import re
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from butterfly.monitoring import METRICS, Metrics
from butterfly.specs import StageTiming


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return _samples(metrics).get((name, tuple(sorted(labels.items()))))


def _timing(worker: str, compute_s: float, received_bytes: int) -> StageTiming:
    return StageTiming(
        worker=worker,
        received_s=100.0,
        started_s=100.0,
        finished_s=100.0 + compute_s,
        received_bytes=received_bytes,
    )


def test_the_table_keeps_the_conventions() -> None:
    names = [spec.name for spec in METRICS]

    assert len(set(names)) == len(names)
    for spec in METRICS:
        assert re.fullmatch(r"butterfly_[a-z_]+", spec.name)
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert bool(spec.buckets) == (spec.kind == "histogram"), spec.name
        if spec.unit in ("seconds", "bytes"):
            assert spec.name.endswith(f"_{spec.unit}"), spec.name
        assert spec.help.endswith(".")


def test_everything_in_the_table_is_rendered_with_its_kind_and_help() -> None:
    text = Metrics().render().decode()

    for spec in METRICS:
        assert f"# HELP {spec.name} {spec.help}" in text
        assert f"# TYPE {spec.name} {spec.kind}" in text


def test_a_request_that_finished() -> None:
    metrics = Metrics()

    metrics.request_finished(
        "stop", num_prompt_tokens=10, num_output_tokens=4, num_cached_tokens=8, ttft_s=0.3, tpot_s=0.02
    )
    metrics.request_finished("abort", num_prompt_tokens=5, num_output_tokens=0)

    assert _value(metrics, "butterfly_requests_total", finish_reason="stop") == 1
    assert _value(metrics, "butterfly_requests_total", finish_reason="abort") == 1
    assert _value(metrics, "butterfly_prompt_tokens_total") == 15
    assert _value(metrics, "butterfly_cached_prompt_tokens_total") == 8
    assert _value(metrics, "butterfly_output_tokens_total") == 4
    assert _value(metrics, "butterfly_time_to_first_token_seconds_count") == 1
    assert _value(metrics, "butterfly_time_to_first_token_seconds_sum") == pytest.approx(0.3)
    assert _value(metrics, "butterfly_time_per_output_token_seconds_sum") == pytest.approx(0.02)


def test_requests_that_were_refused() -> None:
    metrics = Metrics()

    metrics.request_refused("overloaded")
    metrics.request_refused("overloaded")
    metrics.request_refused("invalid")

    assert _value(metrics, "butterfly_refused_requests_total", reason="overloaded") == 2
    assert _value(metrics, "butterfly_refused_requests_total", reason="invalid") == 1
    assert _value(metrics, "butterfly_refused_requests_total", reason="not_ready") == 0  # there before the first


def test_the_room_of_the_kv_cache() -> None:
    metrics = Metrics()

    metrics.kv_changed(used_tokens=100, kept_tokens=60, free_tokens=40)
    metrics.kv_changed(used_tokens=50, kept_tokens=110, free_tokens=40)
    metrics.preempted()
    metrics.preempted(0)
    metrics.preempted(2)

    states = {state: _value(metrics, "butterfly_kv_cache_tokens", state=state) for state in ("used", "kept", "free")}
    assert states == {"used": 50, "kept": 110, "free": 40}
    assert _value(metrics, "butterfly_preemptions_total") == 3


def test_how_busy_the_stages_are() -> None:
    metrics = Metrics()

    metrics.stages_busy((("w0", 0.9), ("w1", 0.5)))
    metrics.stages_busy((("w1", 0.6), ("w2", 0.7)))  # another plan

    assert _value(metrics, "butterfly_stage_busy_ratio", worker="w0") is None
    assert _value(metrics, "butterfly_stage_busy_ratio", worker="w1") == pytest.approx(0.6)
    assert _value(metrics, "butterfly_stage_busy_ratio", worker="w2") == pytest.approx(0.7)


def test_a_step_that_finished() -> None:
    metrics = Metrics()

    metrics.step_finished([_timing("w0", 0.010, 300), _timing("w1", 0.020, 700)], total_s=0.036)

    assert _value(metrics, "butterfly_step_duration_seconds_sum") == pytest.approx(0.036)
    assert _value(metrics, "butterfly_stage_compute_seconds_sum", worker="w1") == pytest.approx(0.020)
    assert _value(metrics, "butterfly_hop_software_seconds_sum") == pytest.approx(0.002)
    assert _value(metrics, "butterfly_step_sent_bytes_sum") == 1000


def test_a_step_without_stamps_only_has_a_duration() -> None:
    metrics = Metrics()

    metrics.step_finished([], total_s=0.5)

    assert _value(metrics, "butterfly_step_duration_seconds_count") == 1
    assert _value(metrics, "butterfly_hop_software_seconds_count") == 0


def test_the_cluster() -> None:
    metrics = Metrics()

    metrics.epoch_changed(3)
    metrics.message_dropped()
    metrics.queue_changed(running=2, waiting=7)
    metrics.worker_beat("w0", resident_bytes=5_000_000_000, kv_used_bytes=100)

    assert _value(metrics, "butterfly_epoch") == 3
    assert _value(metrics, "butterfly_dropped_messages_total") == 1
    assert _value(metrics, "butterfly_requests_running") == 2
    assert _value(metrics, "butterfly_requests_waiting") == 7
    assert _value(metrics, "butterfly_worker_resident_bytes", worker="w0") == 5_000_000_000
    assert _value(metrics, "butterfly_worker_kv_used_bytes", worker="w0") == 100


def test_a_lost_worker_has_no_memory_and_no_load() -> None:
    metrics = Metrics()
    for worker in ("w0", "w1"):
        metrics.worker_beat(worker, resident_bytes=1, kv_used_bytes=1)
    metrics.stages_busy((("w0", 0.9), ("w1", 0.5)))

    metrics.worker_lost("w0")

    assert _value(metrics, "butterfly_worker_resident_bytes", worker="w0") is None
    assert _value(metrics, "butterfly_worker_kv_used_bytes", worker="w0") is None
    assert _value(metrics, "butterfly_stage_busy_ratio", worker="w0") is None
    assert _value(metrics, "butterfly_worker_resident_bytes", worker="w1") == 1
    assert _value(metrics, "butterfly_stage_busy_ratio", worker="w1") == 0.5


def test_two_servers_in_one_process_share_nothing() -> None:
    first, second = Metrics(), Metrics()

    first.epoch_changed(9)

    assert _value(second, "butterfly_epoch") == 0


def test_told_in_one_thread_rendered_in_another() -> None:
    metrics = Metrics()

    def tell() -> None:
        for number in range(500):
            metrics.worker_beat(f"w{number}", resident_bytes=1, kv_used_bytes=1)
            metrics.worker_lost(f"w{number}")

    teller = threading.Thread(target=tell)
    teller.start()
    while teller.is_alive():
        assert b"butterfly_epoch 0.0" in metrics.render()
    teller.join()
