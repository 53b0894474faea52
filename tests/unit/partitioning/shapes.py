"""Small models and clusters for planner tests."""

from __future__ import annotations

from butterfly.specs import ClusterSpec, ModelFootprint, NodeSpec


def make_model(
    num_layers: int = 6,
    layer_bytes: int = 100,
    embedding_bytes: int = 50,
    head_bytes: int = 60,
    kv: int = 1,
    max_context: int = 64,
) -> ModelFootprint:
    return ModelFootprint(
        layer_weight_bytes=(layer_bytes,) * num_layers,
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
        kv_bytes_per_token=(kv,) * num_layers,
        max_context=max_context,
        hidden_bytes_per_token=8,
    )


def make_cluster(*memories: int, bandwidth: float = 1000.0) -> ClusterSpec:
    """Nodes w0, w1, ... with these memories."""
    return ClusterSpec(
        nodes=tuple(
            NodeSpec(name=f"w{i}", memory_bytes=memory, memory_bandwidth_bytes_per_s=bandwidth)
            for i, memory in enumerate(memories)
        )
    )
