"""From the records of a run to its figures, by pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from butterfly.loadgen.spec import LoadSpec, RequestRecord
from butterfly.specs import Spec

_LATE_S = 0.02  # a client that is this late is no longer the open loop that was asked for


class Quantiles(Spec, frozen=True):
    """Of a time in seconds, over requests (over gaps, for ITL)."""

    mean: float
    p50: float
    p90: float
    p99: float


class LoadReport(Spec, frozen=True):
    """A run. Tokens and times are those of completed requests; rates are by `duration_s`."""

    spec: LoadSpec  # with the model and the seed that were used, without the key
    is_complete: bool  # False: it was stopped; what was under way is not in here
    num_completed: int
    num_failed: int
    failures: dict[str, int]  # how many for each reason
    duration_s: float  # from the first request to the last end of one
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float  # input and output
    goodput_requests_per_s: float | None  # those that met the targets; None: there are none
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    ttft_s: Quantiles | None  # None: there is nothing to take them of
    tpot_s: Quantiles | None
    itl_s: Quantiles | None
    e2e_s: Quantiles | None
    notes: tuple[str, ...]  # what a reader of the figures must know
    requests: tuple[RequestRecord, ...]  # in the order in which they were sent


def make_report(
    spec: LoadSpec, records: Iterable[RequestRecord], duration_s: float, notes: Sequence[str] = (), *, is_complete: bool
) -> LoadReport:
    """`duration_s`: from the start to the last end of a request, failed ones included."""
    requests = tuple(sorted(records, key=lambda record: record.index))
    done = [record for record in requests if not record.failure]
    num_input, num_output = sum(r.num_input_tokens for r in done), sum(r.num_output_tokens for r in done)
    has_targets = spec.slo_ttft_s is not None or spec.slo_tpot_s is not None
    gaps = [np.diff(record.chunk_times_s) for record in done]
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    return LoadReport(
        spec=msgspec.structs.replace(spec, api_key=""),
        is_complete=is_complete,
        num_completed=len(done),
        num_failed=len(requests) - len(done),
        failures=dict(Counter(record.failure for record in requests if record.failure).most_common()),
        duration_s=duration_s,
        requests_per_s=len(done) * per_s,
        output_tokens_per_s=num_output * per_s,
        total_tokens_per_s=(num_input + num_output) * per_s,
        goodput_requests_per_s=sum(_meets_targets(r, spec) for r in done) * per_s if has_targets else None,
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        num_cached_tokens=sum(record.num_cached_tokens for record in done),
        ttft_s=quantiles([record.ttft_s for record in done if record.ttft_s is not None]),
        tpot_s=quantiles([record.tpot_s for record in done if record.tpot_s is not None]),
        itl_s=quantiles(np.concatenate(gaps).tolist() if gaps else []),
        e2e_s=quantiles([record.e2e_s for record in done if record.e2e_s is not None]),
        notes=(*notes, *_findings(spec, done)),
        requests=requests,
    )


def quantiles(values_s: Sequence[float]) -> Quantiles | None:
    """None of nothing."""
    if not values_s:
        return None
    p50, p90, p99 = np.percentile(values_s, (50, 90, 99)).tolist()
    return Quantiles(mean=float(np.mean(values_s)), p50=p50, p90=p90, p99=p99)


def _meets_targets(record: RequestRecord, spec: LoadSpec) -> bool:
    pairs = ((record.ttft_s, spec.slo_ttft_s), (record.tpot_s, spec.slo_tpot_s))
    return all(target is None or value is None or value <= target for value, target in pairs)


def _findings(spec: LoadSpec, done: Sequence[RequestRecord]) -> list[str]:
    """Where a run was not what it was asked to be."""
    if not done:
        return []
    found = []
    mean_input = sum(record.num_input_tokens for record in done) / len(done)
    if any(record.num_input_tokens != spec.num_input_tokens for record in done):
        found.append(f"inputs have {mean_input:.1f} tokens on average, not {spec.num_input_tokens}")
    num_odd = sum(record.num_output_tokens != spec.num_output_tokens for record in done)
    if num_odd:
        found.append(f"{num_odd} of {len(done)} outputs do not have the {spec.num_output_tokens} tokens asked for")
    num_cached = sum(record.num_cached_tokens for record in done)
    if num_cached and not spec.num_shared_tokens:
        found.append(f"{num_cached} input tokens were found in the server's prefix cache")
    late_s = max(record.lag_s for record in done)
    if late_s > _LATE_S:
        found.append(f"requests were sent up to {late_s * 1e3:.0f} ms after their arrival: this client was too busy")
    return found
