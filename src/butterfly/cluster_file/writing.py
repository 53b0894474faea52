"""From a ClusterSpec to the text of a cluster file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from butterfly.cluster_file import units
from butterfly.errors import ConfigError
from butterfly.specs import ClusterSpec, LinkSpec, NodeSpec, TimeTable


def write_cluster(path: Path, cluster: ClusterSpec) -> None:
    """Raises ConfigError."""
    try:
        path.write_bytes(dump_cluster(cluster).encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def dump_cluster(cluster: ClusterSpec) -> str:
    """Every link by the names of its ends; no sites or defaults to be expanded."""
    parts = [f"[[nodes]]\n{tomli_w.dumps(_node(node))}{_profile(node)}" for node in cluster.nodes]
    parts += [f"[[links]]\n{tomli_w.dumps(_link(link))}{_codecs(link)}" for link in cluster.links]
    return "\n".join(parts)


def _codecs(link: LinkSpec) -> str:
    """Tables within the link's."""
    return "".join(f"\n[[links.codecs]]\n{tomli_w.dumps(msgspec.structs.asdict(codec))}" for codec in link.codecs)


def _profile(node: NodeSpec) -> str:
    """Tables within the node's, which is the last one before; each list of numbers on one line."""
    if node.profile is None:
        return ""
    parts = [f"\n[nodes.profile]\nstep_s = {node.profile.step_s!r}\n"]
    if not node.profile.layers:
        parts.append("layers = []\n")
    for layer in node.profile.layers:
        parts.append("\n[[nodes.profile.layers]]\n")
        parts += [_times("layers.decode", layer.decode), _times("layers.prefill", layer.prefill)]
    return "".join([*parts, _times("head", node.profile.head)])


def _times(name: str, table: TimeTable) -> str:
    """Python writes lists of numbers as TOML does."""
    rows = [list(row) for row in table.seconds]
    return (
        f"\n[nodes.profile.{name}]\nnum_tokens = {list(table.num_tokens)}\ncontexts = {list(table.contexts)}\n"
        f"seconds = {rows}\n"
    )


def _node(node: NodeSpec) -> dict[str, Any]:
    table: dict[str, Any] = {
        "name": node.name,
        "memory": units.format_size(node.memory_bytes),
        "memory_bandwidth": units.format_rate(node.memory_bandwidth_bytes_per_s),
        "device": node.device,
    }
    if node.flops_per_s:
        table["flops"] = units.format_count_rate(node.flops_per_s)
    if node.site:
        table["site"] = node.site
    return table


def _link(link: LinkSpec) -> dict[str, Any]:
    return {
        "from": link.source,
        "to": link.target,
        "latency": units.format_time(link.latency_s),
        "bandwidth": units.format_rate(link.bandwidth_bytes_per_s),
        "software": units.format_time(link.software_s),
    }
