"""Figures from records, and arrivals from a seed: pure functions."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from butterfly.loadgen import LoadSpec, Quantiles, RequestRecord
from butterfly.loadgen.arrivals import poisson_arrivals
from butterfly.loadgen.report import make_report, quantiles

SPEC = LoadSpec(url="http://x", num_input_tokens=10, num_output_tokens=4, seed=1, api_key="secret")


def record(index: int, ttft_s: float = 1.0, tpot_s: float | None = 0.5, failure: str = "", lag_s: float = 0.0, *,
           cached: int = 0, output: int = 4) -> RequestRecord:  # fmt: skip
    return RequestRecord(
        index=index,
        started_s=0.0,
        lag_s=lag_s,
        failure=failure,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=ttft_s + 1,
        num_input_tokens=10,
        num_output_tokens=output,
        num_cached_tokens=cached,
        chunk_times_s=(ttft_s, ttft_s + 0.25, ttft_s + 1),
    )


def test_rates_and_times() -> None:
    records = [record(1, 3.0), record(0, 1.0), record(2, failure="no"), record(3, failure="no")]
    report = make_report(SPEC, records, 4.0, ("careful",), is_complete=True)
    assert [r.index for r in report.requests] == [0, 1, 2, 3]
    assert (report.num_completed, report.num_failed, report.failures) == (2, 2, {"no": 2})
    assert (report.requests_per_s, report.output_tokens_per_s, report.total_tokens_per_s) == (0.5, 2.0, 7.0)
    assert report.ttft_s is not None
    assert msgspec.structs.astuple(report.ttft_s) == pytest.approx((2.0, 2.0, 2.8, 2.98))
    assert report.itl_s is not None
    assert (report.itl_s.mean, report.itl_s.p50) == (0.5, 0.5)
    assert (report.goodput_requests_per_s, report.notes, report.spec.api_key) == (None, ("careful",), "")


def test_quantiles_are_those_of_numpy() -> None:
    assert quantiles([]) is None
    assert quantiles([float(n) for n in range(101)]) == Quantiles(mean=50.0, p50=50.0, p90=90.0, p99=99.0)


def test_nothing_measured() -> None:
    report = make_report(SPEC, [], 0.0, is_complete=False)
    assert (report.requests_per_s, report.ttft_s, report.itl_s, report.notes) == (0.0, None, None, ())


@pytest.mark.parametrize(("ttft_s", "tpot_s", "goodput"), [(1.0, None, 0.5), (None, 0.4, 0.5), (0.5, 0.5, 0.0)])
def test_goodput_counts_what_meets_every_target(ttft_s: float | None, tpot_s: float | None, goodput: float) -> None:
    spec = LoadSpec(url="", num_input_tokens=10, num_output_tokens=4, slo_ttft_s=ttft_s, slo_tpot_s=tpot_s)
    records = [record(0, 1.0, 0.5), record(1, 2.0, 0.3), record(2, 0.1, failure="no")]
    assert make_report(spec, records, 2.0, is_complete=True).goodput_requests_per_s == goodput


def test_findings() -> None:
    found = make_report(SPEC, [record(0, cached=6, output=3, lag_s=0.1), record(1)], 1.0, is_complete=True).notes
    assert found == (
        "1 of 2 outputs do not have the 4 tokens asked for",
        "6 input tokens were found in the server's prefix cache",
        "requests were sent up to 100 ms after their arrival: this client was too busy",
    )


def test_arrivals_follow_from_seed_and_rate() -> None:
    times_s = poisson_arrivals(2000, 50.0, 3)
    assert times_s == poisson_arrivals(2000, 50.0, 3)
    assert times_s != poisson_arrivals(2000, 50.0, 4)
    assert times_s[0] == 0.0
    assert times_s == sorted(times_s)
    np.testing.assert_allclose(poisson_arrivals(2000, 25.0, 3), np.multiply(2, times_s))
    gaps_s = np.diff(times_s)
    assert gaps_s.mean() == pytest.approx(1 / 50, rel=0.1)
    assert gaps_s.std() == pytest.approx(1 / 50, rel=0.1)
