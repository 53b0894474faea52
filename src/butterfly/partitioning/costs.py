"""What one pass over a stage and one trip over a link cost. Shared by planner and simulation.

A node that was profiled for the model answers from its tables: a stage takes `step_s`, plus each layer's time, plus
the head's on the last stage. Between measured points times are straight lines, and beyond the last two points the line
goes on. A node that was not profiled answers from its rates, with a bound:

    stage_s = max((weights + kv) / bandwidth, 2 * params * num_tokens / flops)
    link_s  = latency + bytes / bandwidth, or with a codec latency + encode + fewer bytes / bandwidth + decode

Where the arithmetic rate is not known, a pass over the weights serves about 32 rows in the time that reading them
takes, and each further row adds its share (bf16 matrix products on a CPU: 0.82 ms for one row, 1.05 for 16, 2.1 for
64, 12.6 for 512). The embedding is a look-up of one row: free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from butterfly.specs import ClusterSpec, LinkSpec, ModelFootprint, NodeSpec, Plan, StagePlan, TimeTable

COORDINATOR = "coordinator"  # the name of the coordinator's end of a link
HOP_SOFTWARE_S = 0.0004  # of a message, at both ends: schedule or check, encode, decode, hand over
LOOPBACK_LATENCY_S = 60e-6  # an encrypted 8 KiB message between two processes of one machine
LOOPBACK_BANDWIDTH_BYTES_PER_S = 1e9  # about what encryption with one core allows
TOKEN_BYTES = 4  # a token id on its way to the first stage, or back from the last
ROWS_PER_WEIGHT_PASS = 32  # rows from which a matrix product is bound by arithmetic, not by memory
FLOPS_PER_PARAM = 2  # multiply and add


# ------------------------------------------------------------------------------------------ bytes


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


# ---------------------------------------------------------------------------------------- compute


def stage_s(weights_read: int, kv_read: int, num_tokens: int, bandwidth_bytes_per_s: float) -> float:
    """Seconds of one pass that reads these bytes for `num_tokens` tokens, where only the memory's rate is known."""
    memory_s = (weights_read + kv_read) / bandwidth_bytes_per_s
    arithmetic_s = num_tokens / ROWS_PER_WEIGHT_PASS * weights_read / bandwidth_bytes_per_s
    return max(memory_s, arithmetic_s)


def layer_s(
    node: NodeSpec, model: ModelFootprint, layer: int, num_tokens: int, context: int, *, is_prompt: bool = False
) -> float:
    """Seconds of one layer: for `num_tokens` sequences with one new token each, or so many tokens of one prompt.

    `context` counts the tokens that each sequence has in the KV cache before.
    """
    if node.profile is not None:
        profile = node.profile.layers[model.layer_kind(layer)]
        return interpolate(profile.prefill if is_prompt else profile.decode, num_tokens, context)
    kv_read = context * model.kv_bytes_per_token[layer] * (1 if is_prompt else num_tokens)
    params = model.num_layer_params[layer] if model.num_layer_params else 0
    return _bound_s(node, model.layer_weight_bytes[layer], kv_read, params, num_tokens)


def head_s(node: NodeSpec, model: ModelFootprint, num_tokens: int) -> float:
    """Seconds of norm, lm_head and sampling of so many tokens."""
    if node.profile is not None:
        return interpolate(node.profile.head, num_tokens, 0)
    return _bound_s(node, model.head_bytes, 0, model.num_head_params, num_tokens)


def step_s(node: NodeSpec) -> float:
    """Seconds that a step takes on a stage beside its layers and the head."""
    return 0.0 if node.profile is None else node.profile.step_s


def memory_bound_s(node: NodeSpec, model: ModelFootprint, stage: StagePlan, context: int) -> float:
    """Seconds in which one token's weights and keys and values can be read: no implementation is faster."""
    kv_read = kv_bytes_per_token(model, stage.start, stage.end) * context
    return (pass_weight_bytes(model, stage) + kv_read) / node.memory_bandwidth_bytes_per_s


def _bound_s(node: NodeSpec, weights_read: int, kv_read: int, params: int, num_tokens: int) -> float:
    bandwidth = node.memory_bandwidth_bytes_per_s
    if not node.flops_per_s:
        return stage_s(weights_read, kv_read, num_tokens, bandwidth)
    flops = FLOPS_PER_PARAM * (params or 2 * weights_read) * num_tokens
    return max((weights_read + kv_read) / bandwidth, flops / node.flops_per_s)


def interpolate(table: TimeTable, num_tokens: float, context: float) -> float:
    """Seconds at a point of the table, or between or beyond its points; never less than nothing."""
    by_context = [_along(table.num_tokens, row, num_tokens) for row in table.seconds]
    return max(0.0, _along(table.contexts, by_context, context))


def _along(points: Sequence[int], values: Sequence[float], x: float) -> float:
    """The value at x on the line through the two points around it, or the two at the end."""
    if len(points) == 1:
        return values[0]
    right = min(max(bisect_right(points, x), 1), len(points) - 1)
    low, high = points[right - 1], points[right]
    slope = (values[right] - values[right - 1]) / (high - low)
    if x > high:
        return values[right] + max(0.0, slope) * (x - high)  # more work is never faster, whatever noise says
    return values[right - 1] + slope * (x - low)


# ------------------------------------------------------------------------------------------ links


def find_link(cluster: ClusterSpec, source: str, target: str) -> LinkSpec:
    """Return the link as measured, or as measured the other way round, or the loopback default."""
    for a, b in ((source, target), (target, source)):
        for link in cluster.links:
            if (link.source, link.target) == (a, b):
                return link
    return default_link(source, target)


def default_link(source: str, target: str) -> LinkSpec:
    """Between processes of one machine."""
    return LinkSpec(
        source=source,
        target=target,
        latency_s=LOOPBACK_LATENCY_S,
        bandwidth_bytes_per_s=LOOPBACK_BANDWIDTH_BYTES_PER_S,
        software_s=HOP_SOFTWARE_S,
    )


def link_s(link: LinkSpec, num_bytes: int) -> float:
    """Seconds from the first byte sent to the last byte received, one way, on an idle link."""
    return link.latency_s + num_bytes / link.bandwidth_bytes_per_s


def hop_s(link: LinkSpec, num_bytes: int) -> float:
    """The same with the software at both ends."""
    return link_s(link, num_bytes) + link.software_s


class Carried(NamedTuple):
    """How hidden states cross a link."""

    codec: str  # empty: plain
    seconds: float  # to encode, send and decode them: all but the latency and the software at both ends
    occupied_s: float  # until the next message may follow: the longest of the three


def carry(link: LinkSpec, num_bytes: int) -> Carried:
    """Return the quickest way to carry hidden states of so many bytes; of equally quick ones plain, then the first."""
    plain_s = num_bytes / link.bandwidth_bytes_per_s
    best = Carried("", plain_s, plain_s)
    for codec in link.codecs:
        encode_s, decode_s = num_bytes * codec.encode_s_per_byte, num_bytes * codec.decode_s_per_byte
        sent_s = num_bytes * codec.ratio / link.bandwidth_bytes_per_s
        seconds = encode_s + sent_s + decode_s
        if seconds < best.seconds:
            best = Carried(codec.name, seconds, max(encode_s, sent_s, decode_s))
    return best


def hidden_hop_s(link: LinkSpec, num_bytes: int) -> float:
    """Seconds of a message with hidden states, software at both ends included. Token ids go plain: `hop_s`."""
    return link.latency_s + carry(link, num_bytes).seconds + link.software_s


def trip(workers: tuple[str, ...], model: ModelFootprint) -> tuple[tuple[str, str, int], ...]:
    """Return (source, target, bytes) of each hop of one decode token: out, from stage to stage, and back."""
    hidden = model.hidden_bytes_per_token
    between = [(a, b, hidden) for a, b in pairwise(workers)]
    return ((COORDINATOR, workers[0], TOKEN_BYTES), *between, (workers[-1], COORDINATOR, TOKEN_BYTES))


def trip_links(plan: Plan, model: ModelFootprint, cluster: ClusterSpec) -> tuple[tuple[LinkSpec, float], ...]:
    """Return the links that one decode token crosses under `plan`, in order, with the seconds of each."""
    hops = trip(tuple(stage.worker for stage in plan.stages), model)
    links = [(find_link(cluster, source, target), size) for source, target, size in hops]
    between = tuple((link, link.latency_s + carry(link, size).seconds) for link, size in links[1:-1])
    out, back = ((link, link_s(link, size)) for link, size in (links[0], links[-1]))
    return (out, *between, back)
