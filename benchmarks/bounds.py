"""What no implementation can beat: bytes over bandwidth, operations over rate, light over wire. Pure functions.

    stage_s   = max(bytes read / memory bandwidth, 2 * parameters * rows / product rate)
    decode_s  = sum of stages + sum of (link delays + bytes / rate), the token's way back included
    prefill_s = flow shop of chunks over stages and links, with the best size of chunks

Weights count as stored in the file. The cut between stages is the best there is at whole layers. Software costs
nothing here, and neither do frame headers, norms and sampling. The rate is that of the fastest product that stock
PyTorch has on this machine, of 8-bit integers where there are instructions for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import ceil, prod

from butterfly.models import Model
from butterfly.specs import TensorEntry

TOKEN_BYTES = 4  # a sampled token's way back to the coordinator
CHUNK_TOKENS = (16, 32, 64, 128, 256, 512)  # candidates of the best chunk of a prompt


@dataclass(frozen=True)
class ModelCosts:
    """What one pass reads and multiplies, per decoder layer and for the head."""

    layer_bytes: tuple[int, ...]
    layer_params: tuple[int, ...]  # of matrices
    head_bytes: int
    head_params: int
    kv_bytes_per_token: tuple[int, ...]  # per layer
    attention_width: int  # query heads x head_dim
    hidden_bytes_per_token: int  # what crosses a link for one token

    @property
    def num_layers(self) -> int:
        return len(self.layer_bytes)


@dataclass(frozen=True)
class Stage:
    """Layers of one node, and perhaps the head."""

    layer_bytes: int
    layer_params: int
    head_bytes: int
    head_params: int
    kv_bytes_per_token: int
    attention_width: int  # summed over its layers


@dataclass(frozen=True)
class NodeSpeed:
    """What one node's memory and cores can do with the threads it has."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    cpu_share: float = 1.0  # of all time that it may compute


@dataclass(frozen=True)
class Path:
    """From one node to the next: the sender's side of the link, then the receiver's, of the same rate."""

    delay_s: float  # of both sides
    rate_bytes_per_s: float
    frame_bytes: int = 0  # stored and forwarded between the sides; 0: each bit is passed on at once

    def wire_s(self, num_bytes: float) -> float:
        """How long a message occupies one side."""
        return num_bytes / self.rate_bytes_per_s

    def lag_s(self, num_bytes: float) -> float:
        """What comes on top until its last bit is there: the delay, and the last frame's second sending."""
        return self.delay_s + self.wire_s(min(num_bytes, self.frame_bytes))

    def crossing_s(self, num_bytes: float) -> float:
        """From the first bit sent to the last bit received, on idle links."""
        return self.wire_s(num_bytes) + self.lag_s(num_bytes)


@dataclass(frozen=True)
class Cluster:
    """Stages in a ring: the last one's token returns to the first node. One node has no path."""

    nodes: tuple[NodeSpeed, ...]
    path: Path | None = None

    def __post_init__(self) -> None:
        if len(self.nodes) > 1 and self.path is None:
            raise ValueError("several nodes need a path between them")


@dataclass(frozen=True)
class Pass:
    """What goes through a stage at once."""

    rows: int  # tokens
    sampled_rows: int  # of them, those that need the head
    cached_tokens: int  # whose keys and values are read
    pairs: float  # of query and key positions

    @classmethod
    def decode(cls, num_streams: int, context: int) -> Pass:
        tokens = num_streams * context
        return cls(num_streams, num_streams, tokens, tokens)

    @classmethod
    def chunk(cls, past: int, rows: int, *, is_last: bool) -> Pass:
        return cls(rows, int(is_last), past + rows, rows * (past + rows / 2))


def model_costs(model: Model) -> ModelCosts:
    """Count a model's stored bytes and parameters."""
    num_layers = model.spec.num_layers
    layer_bytes, layer_params = [0] * num_layers, [0] * num_layers
    for name, entry in model.tensors.items():
        if name.startswith("layers."):
            layer = int(name.split(".")[1])
            layer_bytes[layer] += entry.num_bytes
            layer_params[layer] += _params(entry)
    head = model.tensors["embedding" if model.spec.tied_embedding else "lm_head"]
    return ModelCosts(
        layer_bytes=tuple(layer_bytes),
        layer_params=tuple(layer_params),
        head_bytes=head.num_bytes,
        head_params=_params(head),
        kv_bytes_per_token=model.footprint.kv_bytes_per_token,
        attention_width=model.spec.num_heads * model.spec.head_dim,
        hidden_bytes_per_token=model.footprint.hidden_bytes_per_token,
    )


def _params(entry: TensorEntry) -> int:
    return prod(entry.shape) if len(entry.shape) > 1 else 0


def cut(costs: ModelCosts, counts: Sequence[int]) -> tuple[Stage, ...]:
    """Return the stages with `counts` layers each; the last one has the head."""
    if sum(counts) != costs.num_layers:
        raise ValueError(f"{list(counts)} are not the {costs.num_layers} layers of the model")
    ends = [sum(counts[:index]) for index in range(len(counts) + 1)]
    return tuple(_stage(costs, start, end) for start, end in pairwise(ends))


def best_cut(costs: ModelCosts, num_stages: int) -> tuple[Stage, ...]:
    """Return the stages whose largest reads the fewest bytes, the head counted."""

    def largest(inner: tuple[int, ...]) -> int:
        bounds = (0, *inner, costs.num_layers)
        return max(_read_bytes(costs, start, end) for start, end in pairwise(bounds))

    inner = min(combinations(range(1, costs.num_layers), num_stages - 1), key=largest)
    return cut(costs, [end - start for start, end in pairwise((0, *inner, costs.num_layers))])


def _read_bytes(costs: ModelCosts, start: int, end: int) -> int:
    return sum(costs.layer_bytes[start:end]) + (costs.head_bytes if end == costs.num_layers else 0)


def _stage(costs: ModelCosts, start: int, end: int) -> Stage:
    has_head = end == costs.num_layers
    return Stage(
        layer_bytes=sum(costs.layer_bytes[start:end]),
        layer_params=sum(costs.layer_params[start:end]),
        head_bytes=costs.head_bytes if has_head else 0,
        head_params=costs.head_params if has_head else 0,
        kv_bytes_per_token=sum(costs.kv_bytes_per_token[start:end]),
        attention_width=costs.attention_width * (end - start),
    )


def stage_s(stage: Stage, node: NodeSpeed, work: Pass) -> float:
    """Seconds of one pass while the node computes; its share of the time is not in it."""
    read = stage.layer_bytes + work.cached_tokens * stage.kv_bytes_per_token
    flops = 2 * stage.layer_params * work.rows + 4 * stage.attention_width * work.pairs
    if work.sampled_rows:
        read += stage.head_bytes
        flops += 2 * stage.head_params * work.sampled_rows
    return max(read / node.bandwidth_bytes_per_s, flops / node.flops_per_s)


def trip_s(costs: ModelCosts, stages: Sequence[Stage], cluster: Cluster, num_streams: int, context: int) -> float:
    """Seconds of one decode step of `num_streams` sequences through all stages and back."""
    work = Pass.decode(num_streams, context)
    compute_s = sum(stage_s(stage, node, work) for stage, node in zip(stages, cluster.nodes, strict=True))
    return compute_s + sum(_links_s(costs, cluster, num_streams))


def _links_s(costs: ModelCosts, cluster: Cluster, rows: int) -> list[float]:
    """Seconds of each link on the way of `rows` tokens: from stage to stage, and back."""
    if cluster.path is None or len(cluster.nodes) == 1:
        return []
    path, forward = cluster.path, len(cluster.nodes) - 1
    sizes = [rows * costs.hidden_bytes_per_token] * forward + [rows * TOKEN_BYTES]
    return [path.crossing_s(size) for size in sizes]


def decode_s(costs: ModelCosts, cluster: Cluster, num_streams: int, context: int) -> float:
    """Least seconds between two tokens of each of `num_streams` sequences.

    They go together or in several micro-batches that keep more than one stage busy, whichever is faster. Then each
    stage makes all its passes and each link carries all rows between two tokens of a stream.
    """
    stages = best_cut(costs, len(cluster.nodes))
    best = float("inf")
    for rows in range(1, num_streams + 1):
        passes = ceil(num_streams / rows)
        busiest_s = max(
            stage_s(stage, node, Pass.decode(rows, context)) / node.cpu_share
            for stage, node in zip(stages, cluster.nodes, strict=True)
        )
        step_s = max(
            trip_s(costs, stages, cluster, rows, context), passes * busiest_s, _wire_s(costs, cluster, rows) * passes
        )
        best = min(best, step_s)
    return best


def _wire_s(costs: ModelCosts, cluster: Cluster, rows: int) -> float:
    if cluster.path is None or len(cluster.nodes) == 1:
        return 0.0
    return cluster.path.wire_s(rows * costs.hidden_bytes_per_token)


def prefill_s(costs: ModelCosts, cluster: Cluster, num_tokens: int) -> float:
    """Least seconds from a prompt of `num_tokens` to its first token."""
    stages = best_cut(costs, len(cluster.nodes))
    return min(_chunked_prefill_s(costs, stages, cluster, num_tokens, chunk) for chunk in CHUNK_TOKENS)


def _chunked_prefill_s(
    costs: ModelCosts, stages: Sequence[Stage], cluster: Cluster, num_tokens: int, chunk_tokens: int
) -> float:
    chunks = [
        Pass.chunk(start, min(chunk_tokens, num_tokens - start), is_last=start + chunk_tokens >= num_tokens)
        for start in range(0, num_tokens, chunk_tokens)
    ]
    compute_s = [
        [stage_s(stage, node, chunk) for stage, node in zip(stages, cluster.nodes, strict=True)] for chunk in chunks
    ]
    path = cluster.path if len(cluster.nodes) > 1 else None
    sizes = [chunk.rows * costs.hidden_bytes_per_token for chunk in chunks]
    links_s = [(path.wire_s(size), path.lag_s(size)) if path else (0.0, 0.0) for size in sizes]
    end_s = flow_shop_s(compute_s, links_s)
    if path:
        end_s += path.crossing_s(TOKEN_BYTES)
    throttled_s = [
        sum(times[index] for times in compute_s) / node.cpu_share for index, node in enumerate(cluster.nodes)
    ]
    return max(end_s, *throttled_s)


def flow_shop_s(compute_s: Sequence[Sequence[float]], links_s: Sequence[tuple[float, float]]) -> float:
    """Return when the last chunk leaves the last stage.

    `compute_s[m][k]` is chunk m on stage k; `links_s[m]` is how long it occupies each link between stages, and what the
    link adds without being occupied. Chunks keep their order, and nothing does two at a time.
    """
    num_stages = len(compute_s[0])
    stage_free_s, link_free_s = [0.0] * num_stages, [0.0] * num_stages
    now_s = 0.0
    for times, (occupied_s, lag_s) in zip(compute_s, links_s, strict=True):
        now_s = 0.0
        for index in range(num_stages):
            now_s = stage_free_s[index] = max(now_s, stage_free_s[index]) + times[index]
            if index < num_stages - 1:
                link_free_s[index] = max(now_s, link_free_s[index]) + occupied_s
                now_s = link_free_s[index] + lag_s
    return now_s


def throughput_per_s(
    costs: ModelCosts, cluster: Cluster, num_streams: int, input_tokens: int, output_tokens: int
) -> float:
    """Most output tokens per second of `num_streams` readers that ask again and again.

    The lesser of two limits: all decode without any prompts, and the arithmetic of prompts and outputs of the busiest
    stage. A pass may hold prompts and outputs, so the two do not add up.
    """
    decoding = num_streams / decode_s(costs, cluster, num_streams, input_tokens + output_tokens // 2)
    stages = best_cut(costs, len(cluster.nodes))
    per_output_s = max(
        (2 * stage.layer_params * (input_tokens + output_tokens) + 2 * stage.head_params * output_tokens)
        / output_tokens
        / (node.flops_per_s * node.cpu_share)
        for stage, node in zip(stages, cluster.nodes, strict=True)
    )
    return min(decoding, 1 / per_output_s)


def load_s(costs: ModelCosts, cluster: Cluster) -> float:
    """Least seconds to bring the weights into memory when every node reads its own part from its page cache."""
    stages = best_cut(costs, len(cluster.nodes))
    return max(
        (stage.layer_bytes + stage.head_bytes) / node.bandwidth_bytes_per_s
        for stage, node in zip(stages, cluster.nodes, strict=True)
    )


def hop_wire_s(costs: ModelCosts, cluster: Cluster) -> float:
    """Seconds of the wire per message in a one-stream decode step: what is no software in the time of a hop.

    S stages mean S + 1 messages, one of which (to the first stage) stays on its node.
    """
    return sum(_links_s(costs, cluster, 1)) / (len(cluster.nodes) + 1)
