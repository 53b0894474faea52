"""Refuses input that makes no sense, before anything is computed from it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from math import inf, isfinite

from butterfly.errors import PlanError
from butterfly.partitioning.costs import COORDINATOR
from butterfly.specs import (
    ClusterSpec,
    ComputeProfile,
    LinkSpec,
    ModelFootprint,
    NodeSpec,
    PlanConstraints,
    TimeTable,
    WorkloadSpec,
)


def check_input(
    model: ModelFootprint, cluster: ClusterSpec, workload: WorkloadSpec, constraints: PlanConstraints
) -> None:
    """Raises PlanError, in one line, for what is no model, cluster, workload or constraint."""
    _check_model(model)
    names = [node.name for node in cluster.nodes]
    if len(set(names)) != len(names):
        raise PlanError(f"two nodes share a name: {names}")
    for node in cluster.nodes:
        _check_node(node, model)
    _check_links(cluster, names)
    if workload.concurrency < 1 or workload.context < 1 or model.max_context < 1:
        raise PlanError(
            f"concurrency {workload.concurrency}, context {workload.context} and the model's context "
            f"{model.max_context} must be at least 1"
        )
    _check_constraints(constraints, names, len(model.layer_weight_bytes))


def _check_model(model: ModelFootprint) -> None:
    num_layers = len(model.layer_weight_bytes)
    if not num_layers or num_layers != len(model.kv_bytes_per_token):
        raise PlanError(f"the model has weights of {num_layers} layers and KV sizes of {len(model.kv_bytes_per_token)}")
    for what, values in (("kinds", model.layer_kinds), ("parameters", model.num_layer_params)):
        if values and len(values) != num_layers:
            raise PlanError(f"the model has {what} of {len(values)} layers, and weights of {num_layers}")


def _check_node(node: NodeSpec, model: ModelFootprint) -> None:
    if node.name == COORDINATOR:
        raise PlanError(f"a node cannot be called {COORDINATOR}: that is the coordinator's end of a link")
    if not (node.memory_bytes > 0 and node.memory_bandwidth_bytes_per_s > 0 and node.flops_per_s >= 0):
        raise PlanError(
            f"node {node.name} needs positive memory and bandwidth, not {node.memory_bytes:,} bytes and "
            f"{node.memory_bandwidth_bytes_per_s:,.0f} bytes/s"
        )
    if node.profile is not None:
        _check_profile(node.name, node.profile, 1 + max(model.layer_kinds, default=0))


def _check_profile(name: str, profile: ComputeProfile, num_kinds: int) -> None:
    if len(profile.layers) != num_kinds:
        raise PlanError(
            f"node {name} was profiled for {len(profile.layers)} kinds of layers, and the model has {num_kinds}: "
            "profile it for this model"
        )
    tables = [table for layer in profile.layers for table in (layer.decode, layer.prefill)]
    for table in (*tables, profile.head):
        _check_table(name, table)


def _check_table(name: str, table: TimeTable) -> None:
    is_whole = len(table.seconds) == len(table.contexts) and all(
        len(row) == len(table.num_tokens) for row in table.seconds
    )
    is_sorted = all(
        list(points) == sorted(set(points)) and len(points) for points in (table.num_tokens, table.contexts)
    )
    if not (is_whole and is_sorted and all(isfinite(value) and value >= 0 for row in table.seconds for value in row)):
        raise PlanError(f"a table of times of node {name} is not whole, not sorted, or has times that are none")


def _check_links(cluster: ClusterSpec, names: Sequence[str]) -> None:
    known = {*names, COORDINATOR}
    for link in cluster.links:
        for end in (link.source, link.target):
            if end not in known:
                raise PlanError(
                    f"a link {link.source}-{link.target} ends at {end}, which is no node{_near(end, names)}"
                )
        if not (link.bandwidth_bytes_per_s > 0 and link.latency_s >= 0 and link.software_s >= 0):
            raise PlanError(f"link {link.source}-{link.target} needs a positive bandwidth and no negative latency")
        _check_codecs(link)


def _check_codecs(link: LinkSpec) -> None:
    names = [codec.name for codec in link.codecs]
    if "" in names or len(set(names)) != len(names):
        raise PlanError(f"the codecs of link {link.source}-{link.target} need names, each its own: {names}")
    for codec in link.codecs:
        times = (codec.encode_s_per_byte, codec.decode_s_per_byte)
        if not (0 < codec.ratio < inf and all(0 <= seconds < inf for seconds in times)):
            raise PlanError(
                f"codec {codec.name} of link {link.source}-{link.target} needs a ratio above 0, and times that are "
                "not negative"
            )


def _check_constraints(constraints: PlanConstraints, names: Sequence[str], num_layers: int) -> None:
    for name in (*constraints.exclude, *(pin.node for pin in constraints.layers)):
        if name not in names:
            raise PlanError(f"there is no node {name}{_near(name, names)}")
    if constraints.max_nodes < 0:
        raise PlanError(f"a plan cannot have {constraints.max_nodes} nodes at most")
    pins = sorted(constraints.layers, key=lambda pin: (pin.start, pin.end))
    for pin in pins:
        if not 0 <= pin.start < pin.end <= num_layers:
            raise PlanError(f"{pin.node}={pin.start}:{pin.end} are no layers of a model with {num_layers}")
        if pin.node in constraints.exclude:
            raise PlanError(f"node {pin.node} cannot be excluded and hold layers {pin.start}:{pin.end}")
    if len({pin.node for pin in pins}) != len(pins):
        raise PlanError("a node can be given one range of layers only")
    for before, after in pairwise(pins):
        if after.start < before.end:
            raise PlanError(
                f"{before.node}={before.start}:{before.end} and {after.node}={after.start}:{after.end} overlap"
            )


def _near(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f": did you mean {near[0]}?" if near else f" (there are {', '.join(names)})" if names else ""
