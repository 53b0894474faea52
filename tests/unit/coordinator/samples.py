"""Nodes, profiles and a tiny model for tests of the coordinator."""

from __future__ import annotations

from collections.abc import Sequence

from butterfly.messages import PeerAddress, Profile
from butterfly.specs import (
    ComputeProfile,
    LayerProfile,
    LayerSpec,
    LinkSpec,
    ModelFootprint,
    ModelSpec,
    NodeSpec,
    TensorEntry,
    TimeTable,
)

NORM = TensorEntry(name="output_norm", storage="F32", shape=(4,), num_bytes=16)
FOOTPRINT = ModelFootprint(
    layer_weight_bytes=(100, 100),
    embedding_bytes=10,
    head_bytes=10,
    kv_bytes_per_token=(1, 1),
    max_context=64,
    hidden_bytes_per_token=8,
)
SPEC = ModelSpec(
    name="tiny",
    family="tiny",
    hidden_size=4,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=4,
    vocab_size=16,
    max_context=64,
    norm_eps=1e-6,
    attention_scale=1.0,
    layers=(LayerSpec(),) * 2,
    ropes=(),
)


class TinyModel:
    """Fits the coordinator's PipelineModel."""

    name = "tiny"
    spec = SPEC
    footprint = FOOTPRINT

    def stage_tensors(self, start: int, end: int, *, embedding: bool, head: bool) -> Sequence[TensorEntry]:
        return [NORM] if head else []

    def profile_tensors(self) -> tuple[Sequence[int], Sequence[TensorEntry]]:
        return [0], [NORM]


def make_node(name: str) -> NodeSpec:
    return NodeSpec(name=name, memory_bytes=1000, memory_bandwidth_bytes_per_s=1e6)


def address(name: str) -> PeerAddress:
    return PeerAddress(name=name, endpoint=f"somewhere://{name}", public_key=f"key of {name}")


def question() -> Profile:
    return Profile(epoch=0, model=SPEC, layers=(0,), tensors=(NORM,), dtype="bfloat16", weights="int4")


def table(*seconds: float) -> TimeTable:
    return TimeTable(num_tokens=tuple(range(1, len(seconds) + 1)), contexts=(0,), seconds=(seconds,))


def profile(layer_s: float = 0.001, num_kinds: int = 1) -> ComputeProfile:
    layer = LayerProfile(decode=table(layer_s, 2 * layer_s), prefill=table(layer_s, 2 * layer_s))
    return ComputeProfile(layers=(layer,) * num_kinds, head=table(0.002), step_s=0.0001)


def link(source: str, target: str, latency_s: float = 0.003) -> LinkSpec:
    return LinkSpec(source=source, target=target, latency_s=latency_s, bandwidth_bytes_per_s=1e8, software_s=0.0)
