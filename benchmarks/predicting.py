"""The bounds of one load on one cluster, in the units of the figures that they stand beside."""

from __future__ import annotations

from benchmarks.bounds import Cluster, ModelCosts, decode_s, prefill_s, throughput_per_s
from benchmarks.record import Bound
from benchmarks.scenarios import LoadShape


def bound_of(costs: ModelCosts, cluster: Cluster, load: LoadShape) -> Bound:
    """Least times and highest rate under a load. The context is that of a request's middle token."""
    ttft_s = prefill_s(costs, cluster, load.input_tokens)
    tpot_s = decode_s(costs, cluster, load.concurrency, load.input_tokens + load.output_tokens // 2)
    if load.kind == "prefill":
        rate = load.input_tokens / ttft_s
    elif load.kind == "decode":
        rate = 1 / tpot_s
    else:
        rate = throughput_per_s(costs, cluster, load.concurrency, load.input_tokens, load.output_tokens)
    return Bound(ttft_s=ttft_s, tpot_s=tpot_s, rate=rate)
