"""What one pass over a stage and one trip over a link cost. Shared by planner and simulation.

Formulae of the cost model. Bytes are what a pass reads from memory:

    stage_s = max((weights + kv) / bandwidth, num_tokens / 32 * weights / bandwidth)
    link_s  = latency + bytes / bandwidth

The second term of a stage is arithmetic: a pass over the weights serves up to about 32 rows in the time
that reading them takes, and each further row adds its share (bf16 matrix products on a CPU: 0.82 ms for
one row, 1.05 for 16, 2.1 for 64, 12.6 for 512). The embedding is a look-up of one row: free.
"""

from __future__ import annotations

from itertools import pairwise

from butterfly.specs import ClusterSpec, LinkSpec, ModelFootprint, Plan, StagePlan

COORDINATOR = "coordinator"  # the name of the coordinator's end of a link
HOP_SOFTWARE_S = 0.0003  # encode, send, receive, decode, hand over: one hop, both ends
LOOPBACK_LATENCY_S = 60e-6  # an encrypted 8 KiB message between two processes of one machine
LOOPBACK_BANDWIDTH_BYTES_PER_S = 1e9  # about what encryption with one core allows
TOKEN_BYTES = 4  # a token id on its way to the first stage, or back from the last
ROWS_PER_WEIGHT_PASS = 32  # rows from which a matrix product is bound by arithmetic, not by memory


def kv_bytes_per_token(model: ModelFootprint, start: int, end: int) -> int:
    """Bytes of keys and values that layers [start, end) keep for one token."""
    return sum(model.kv_bytes_per_token[start:end])


def weight_bytes(model: ModelFootprint, start: int, end: int, *, embedding: bool, head: bool) -> int:
    """Bytes of weights that a stage holds."""
    layers = sum(model.layer_weight_bytes[start:end])
    return layers + embedding * model.embedding_bytes + head * model.head_bytes


def pass_weight_bytes(model: ModelFootprint, stage: StagePlan) -> int:
    """Bytes of weights that one pass reads: all the stage holds but the embedding."""
    return weight_bytes(model, stage.start, stage.end, embedding=False, head=stage.head)


def stage_s(weights_read: int, kv_read: int, num_tokens: int, bandwidth_bytes_per_s: float) -> float:
    """Seconds of one pass that reads these bytes for `num_tokens` tokens of any sequences."""
    memory_s = (weights_read + kv_read) / bandwidth_bytes_per_s
    arithmetic_s = num_tokens / ROWS_PER_WEIGHT_PASS * weights_read / bandwidth_bytes_per_s
    return max(memory_s, arithmetic_s)


def find_link(cluster: ClusterSpec, source: str, target: str) -> LinkSpec:
    """Return the link as measured, or as measured the other way round, or the loopback default."""
    for a, b in ((source, target), (target, source)):
        for link in cluster.links:
            if (link.source, link.target) == (a, b):
                return link
    return LinkSpec(
        source=source,
        target=target,
        latency_s=LOOPBACK_LATENCY_S,
        bandwidth_bytes_per_s=LOOPBACK_BANDWIDTH_BYTES_PER_S,
    )


def link_s(link: LinkSpec, num_bytes: int) -> float:
    """Seconds from the first byte sent to the last byte received, one way, on an idle link."""
    return link.latency_s + num_bytes / link.bandwidth_bytes_per_s


def trip(workers: tuple[str, ...], model: ModelFootprint) -> tuple[tuple[str, str, int], ...]:
    """Return (source, target, bytes) of each hop of one decode token: out, from stage to stage, and back."""
    hidden = model.hidden_bytes_per_token
    between = [(a, b, hidden) for a, b in pairwise(workers)]
    return ((COORDINATOR, workers[0], TOKEN_BYTES), *between, (workers[-1], COORDINATOR, TOKEN_BYTES))


def trip_links(plan: Plan, model: ModelFootprint, cluster: ClusterSpec) -> tuple[tuple[LinkSpec, float], ...]:
    """Return the links that one decode token crosses under `plan`, in order, with the seconds of each."""
    hops = trip(tuple(stage.worker for stage in plan.stages), model)
    links = [(find_link(cluster, source, target), size) for source, target, size in hops]
    return tuple((link, link_s(link, size)) for link, size in links)
