"""Every metric in one table, and the object that counts them.

Names follow the Prometheus conventions: prefix, then what, then the base unit; `_total` on counters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from butterfly.monitoring.timings import compute_s, sent_bytes, software_s_per_hop
from butterfly.specs import FinishReason, StageTiming

Kind = Literal["counter", "gauge", "histogram"]
RefusalReason = Literal["overloaded", "invalid", "not_ready"]

# Factors of about 2 resolve a regression of a third; the ranges reach from a loopback hop to a cold prompt.
_SHORT_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_LONG_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_STEP_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_BYTES = tuple(float(4**power) for power in range(4, 15))  # 256 B to 256 MiB


class MetricSpec(NamedTuple):
    """One row of the table. `unit` is for people: the name already ends with it where it has one."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds, histograms only


METRICS: tuple[MetricSpec, ...] = (
    # requests
    MetricSpec(
        "butterfly_requests_total",
        "counter",
        "requests",
        "Requests that ended, by finish reason.",
        labels=("finish_reason",),
    ),
    MetricSpec(
        "butterfly_refused_requests_total",
        "counter",
        "requests",
        "Requests that were not accepted, by reason.",
        labels=("reason",),
    ),
    MetricSpec("butterfly_requests_running", "gauge", "requests", "Requests with KV cache on the stages."),
    MetricSpec("butterfly_requests_waiting", "gauge", "requests", "Accepted requests that wait for a slot."),
    MetricSpec("butterfly_prompt_tokens_total", "counter", "tokens", "Prompt tokens of ended requests."),
    MetricSpec(
        "butterfly_cached_prompt_tokens_total",
        "counter",
        "tokens",
        "Prompt tokens of ended requests that were found in the KV cache instead of computed.",
    ),
    MetricSpec("butterfly_output_tokens_total", "counter", "tokens", "Output tokens of ended requests."),
    MetricSpec(
        "butterfly_time_to_first_token_seconds",
        "histogram",
        "seconds",
        "From accepting a request to its first token.",
        buckets=_LONG_S,
    ),
    MetricSpec(
        "butterfly_time_per_output_token_seconds",
        "histogram",
        "seconds",
        "Mean time between the tokens of a request, after its first.",
        buckets=_STEP_S,
    ),
    # KV cache
    MetricSpec(
        "butterfly_kv_cache_tokens",
        "gauge",
        "tokens",
        "Room of the KV cache: used by running requests, kept for the next with the same beginning, free.",
        labels=("state",),
    ),
    MetricSpec(
        "butterfly_preemptions_total", "counter", "preemptions", "Running requests that had to give up their KV cache."
    ),
    # steps
    MetricSpec(
        "butterfly_step_duration_seconds",
        "histogram",
        "seconds",
        "One trip through all stages, seen by the coordinator.",
        buckets=_STEP_S,
    ),
    MetricSpec(
        "butterfly_computed_tokens_total",
        "counter",
        "tokens",
        "Tokens that went through the stages, as part of a prompt or generated; computed twice is counted twice.",
        labels=("role",),
    ),
    MetricSpec(
        "butterfly_stage_compute_seconds",
        "histogram",
        "seconds",
        "Time a stage computed for one step, on its own clock.",
        labels=("worker",),
        buckets=_STEP_S,
    ),
    MetricSpec(
        "butterfly_stage_busy_ratio",
        "gauge",
        "ratio",
        "Share of the time that a stage computed, up to its last step.",
        labels=("worker",),
    ),
    MetricSpec(
        "butterfly_hop_software_seconds",
        "histogram",
        "seconds",
        "Time of a step that no stage computed, per message.",
        buckets=_SHORT_S,
    ),
    MetricSpec(
        "butterfly_step_sent_bytes",
        "histogram",
        "bytes",
        "Bytes of the messages that carried one step from stage to stage.",
        buckets=_BYTES,
    ),
    # cluster
    MetricSpec("butterfly_epoch", "gauge", "", "Epoch of the current plan."),
    MetricSpec(
        "butterfly_worker_resident_bytes",
        "gauge",
        "bytes",
        "Resident memory of a worker process at its last heartbeat.",
        labels=("worker",),
    ),
    MetricSpec(
        "butterfly_worker_kv_used_bytes",
        "gauge",
        "bytes",
        "KV cache in use on a worker at its last heartbeat.",
        labels=("worker",),
    ),
    MetricSpec(
        "butterfly_dropped_messages_total",
        "counter",
        "messages",
        "Messages of an older epoch, dropped at the border.",
    ),
)


class Metrics:
    """Counts what it is told, in a registry of its own. Every method may be called from any thread."""

    content_type: ClassVar[str] = CONTENT_TYPE_PLAIN_0_0_4  # of what `render` returns

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._lock = threading.Lock()
        self._busy_workers: set[str] = set()  # that have a gauge
        for spec in METRICS:
            self._add(spec)
        for reason in get_args(RefusalReason):  # a rate over time needs the zero before the first refusal
            self._counters["butterfly_refused_requests_total"].labels(reason=reason)

    def request_finished(
        self,
        reason: FinishReason,
        *,
        num_prompt_tokens: int,
        num_output_tokens: int,
        num_cached_tokens: int = 0,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
    ) -> None:
        """Count a request that ended. A time is None when the request ended before it had one.

        `num_cached_tokens` of its prompt were found in the KV cache.
        """
        self._counters["butterfly_requests_total"].labels(finish_reason=reason).inc()
        self._counters["butterfly_prompt_tokens_total"].inc(num_prompt_tokens)
        self._counters["butterfly_cached_prompt_tokens_total"].inc(num_cached_tokens)
        self._counters["butterfly_output_tokens_total"].inc(num_output_tokens)
        if ttft_s is not None:
            self._histograms["butterfly_time_to_first_token_seconds"].observe(ttft_s)
        if tpot_s is not None:
            self._histograms["butterfly_time_per_output_token_seconds"].observe(tpot_s)

    def request_refused(self, reason: RefusalReason) -> None:
        """Count a request that was turned away before it was accepted."""
        self._counters["butterfly_refused_requests_total"].labels(reason=reason).inc()

    def queue_changed(self, *, running: int, waiting: int) -> None:
        self._gauges["butterfly_requests_running"].set(running)
        self._gauges["butterfly_requests_waiting"].set(waiting)

    def kv_changed(self, *, used_tokens: int, kept_tokens: int, free_tokens: int) -> None:
        """Tell how the room of the KV cache is divided; the three add up to all of it."""
        tokens = self._gauges["butterfly_kv_cache_tokens"]
        tokens.labels(state="used").set(used_tokens)
        tokens.labels(state="kept").set(kept_tokens)
        tokens.labels(state="free").set(free_tokens)

    def preempted(self, count: int = 1) -> None:
        """Count `count` more preemptions."""
        self._counters["butterfly_preemptions_total"].inc(count)

    def stages_busy(self, shares: Iterable[tuple[str, float]]) -> None:
        """Tell (worker, share of the time it computed) of every stage; a worker that is not among them is forgotten."""
        gauge = self._gauges["butterfly_stage_busy_ratio"]
        told = dict(shares)
        for worker, share in told.items():
            gauge.labels(worker=worker).set(share)
        with self._lock:
            gone, self._busy_workers = self._busy_workers - told.keys(), set(told)
        for worker in gone:
            gauge.remove(worker)

    def step_finished(self, timings: Sequence[StageTiming], total_s: float) -> None:
        """Count one step; `total_s` is its duration on the coordinator's clock."""
        self._histograms["butterfly_step_duration_seconds"].observe(total_s)
        if not timings:
            return  # a pipeline that does not stamp tells nothing about its stages
        for timing in timings:
            stage = self._histograms["butterfly_stage_compute_seconds"].labels(worker=timing.worker)
            stage.observe(compute_s(timing))
        self._histograms["butterfly_hop_software_seconds"].observe(software_s_per_hop(timings, total_s))
        self._histograms["butterfly_step_sent_bytes"].observe(sent_bytes(timings))

    def tokens_computed(self, *, num_prompt: int, num_output: int) -> None:
        """Count the tokens of one step, by their role in their sequence."""
        self._counters["butterfly_computed_tokens_total"].labels(role="prompt").inc(num_prompt)
        self._counters["butterfly_computed_tokens_total"].labels(role="output").inc(num_output)

    def worker_beat(self, worker: str, *, resident_bytes: int, kv_used_bytes: int) -> None:
        self._gauges["butterfly_worker_resident_bytes"].labels(worker=worker).set(resident_bytes)
        self._gauges["butterfly_worker_kv_used_bytes"].labels(worker=worker).set(kv_used_bytes)

    def worker_lost(self, worker: str) -> None:
        """Forget the gauges of a worker that left: its last figures would look alive for ever."""
        self._gauges["butterfly_worker_resident_bytes"].remove(worker)
        self._gauges["butterfly_worker_kv_used_bytes"].remove(worker)
        self._gauges["butterfly_stage_busy_ratio"].remove(worker)

    def epoch_changed(self, epoch: int) -> None:
        self._gauges["butterfly_epoch"].set(epoch)

    def message_dropped(self) -> None:
        """Count a message of an older epoch."""
        self._counters["butterfly_dropped_messages_total"].inc()

    def render(self) -> bytes:
        """Return the Prometheus text format, version 0.0.4."""
        return generate_latest(self._registry)

    def _add(self, spec: MetricSpec) -> None:
        if spec.kind == "counter":
            self._counters[spec.name] = Counter(spec.name, spec.help, spec.labels, registry=self._registry)
        elif spec.kind == "gauge":
            self._gauges[spec.name] = Gauge(spec.name, spec.help, spec.labels, registry=self._registry)
        else:
            self._histograms[spec.name] = Histogram(
                spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=self._registry
            )
