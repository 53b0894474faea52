"""From the text of a cluster file to a ClusterSpec."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from butterfly.cluster_file import units
from butterfly.cluster_file.network import COORDINATOR, Entry, Network, Rates
from butterfly.cluster_file.tables import Table, nearest
from butterfly.errors import ConfigError
from butterfly.specs import ClusterSpec, CodecSpec, ComputeProfile, LinkSpec, NodeSpec, TimeTable

_RATES = ("latency", "bandwidth", "software", "codecs")


def read_cluster(path: Path) -> ClusterSpec:
    """Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from error
    return parse_cluster(text, path.name)


def parse_cluster(text: str, file: str = "cluster.toml") -> ClusterSpec:
    """`file` is the name in error messages. Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    top = Table(values, file)
    top.check_keys("cluster", "defaults", "nodes", "sites", "links")
    nodes = _nodes(top)
    site_entries = _site_entries(top)
    places = {node.name for node in nodes} | {node.site for node in nodes} | {entry.source for entry in site_entries}
    places -= {""}
    cluster = top.table("cluster")
    cluster.check_keys("coordinator")
    host = cluster.text("coordinator", "")
    if host and host not in places:
        raise ConfigError(f"{cluster.where('coordinator')}: no node or site {host!r}; {nearest(host, places)}")
    defaults = top.table("defaults")
    defaults.check_keys(*_RATES)
    network = Network(
        nodes=nodes,
        entries=(*_link_entries(top, places), *site_entries),
        defaults=_rates(defaults) if defaults.values else None,
        host=host,
    )
    return ClusterSpec(nodes=nodes, links=network.links())


def _nodes(top: Table) -> tuple[NodeSpec, ...]:
    nodes = [_node(table) for table in top.tables("nodes")]
    if not nodes:
        raise ConfigError(f"{top.where()}: needs nodes, each under [[nodes]]")
    _check_names([node.name for node in nodes], top.where("nodes"))
    return tuple(nodes)


def _node(table: Table) -> NodeSpec:
    table.check_keys("name", "memory", "memory_bandwidth", "flops", "device", "site", "profile")
    name = table.text("name")
    if name == COORDINATOR:
        raise ConfigError(f"{table.where('name')}: {COORDINATOR!r} is the coordinator's name, no node's")
    return NodeSpec(
        name=name,
        memory_bytes=table.quantity("memory", units.parse_size),
        memory_bandwidth_bytes_per_s=table.quantity("memory_bandwidth", units.parse_rate),
        device=table.text("device", "cpu"),
        flops_per_s=table.quantity("flops", units.parse_count_rate, 0.0),
        site=table.text("site", ""),
        profile=_profile(table.table("profile")) if "profile" in table.values else None,
    )


def _site_entries(top: Table) -> list[Entry]:
    entries = []
    for table in top.tables("sites"):
        table.check_keys("name", *_RATES)
        name = table.text("name")
        entries.append(Entry(name, name, _rates(table)))
    _check_names([entry.source for entry in entries], top.where("sites"))
    return entries


def _link_entries(top: Table, places: set[str]) -> list[Entry]:
    entries: list[Entry] = []
    for table in top.tables("links"):
        table.check_keys("from", "to", *_RATES)
        source, target = (_place(table, key, places) for key in ("from", "to"))
        if any((source, target) == (entry.source, entry.target) for entry in entries):
            raise ConfigError(f"{table.where()}: a second link from {source} to {target}")
        entries.append(Entry(source, target, _rates(table)))
    return entries


def _place(table: Table, key: str, places: set[str]) -> str:
    name = table.text(key)
    if name not in places and name != COORDINATOR:
        raise ConfigError(f"{table.where(key)}: no node or site {name!r}; {nearest(name, {*places, COORDINATOR})}")
    return name


def _rates(table: Table) -> Rates:
    software_s = next(field.default for field in msgspec.structs.fields(LinkSpec) if field.name == "software_s")
    return Rates(
        latency_s=table.quantity("latency", units.parse_time),
        bandwidth_bytes_per_s=table.quantity("bandwidth", units.parse_rate),
        software_s=table.quantity("software", units.parse_time, software_s),
        codecs=tuple(_codec(codec) for codec in table.tables("codecs")),
    )


def _codec(table: Table) -> CodecSpec:
    """As measured: numbers in seconds for each byte, as they are."""
    table.check_keys(*(field.name for field in msgspec.structs.fields(CodecSpec)))
    try:
        return msgspec.convert(table.values, CodecSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{table.where()}: {error}") from error


def _check_names(names: Sequence[str], where: str) -> None:
    for index, name in enumerate(names):
        if not name:
            raise ConfigError(f"{where}[{index}].name: must not be empty")
        if name in names[:index]:
            raise ConfigError(f"{where}[{index}].name: {name!r} is the name of two")


def _profile(table: Table) -> ComputeProfile:
    """The tables that a worker measured: numbers in seconds, as they are."""
    table.check_keys("layers", "head", "step_s")
    for layer in table.tables("layers"):
        layer.check_keys("decode", "prefill")
        for key in layer.values:
            layer.table(key).check_keys("num_tokens", "contexts", "seconds")
    table.table("head").check_keys("num_tokens", "contexts", "seconds")
    try:
        profile = msgspec.convert(table.values, ComputeProfile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{table.where()}: {error}") from error
    for layer_profile in profile.layers:
        _check_time_table(layer_profile.decode, table)
        _check_time_table(layer_profile.prefill, table)
    _check_time_table(profile.head, table)
    return profile


def _check_time_table(times: TimeTable, table: Table) -> None:
    for points in (times.num_tokens, times.contexts):
        if not points or any(a >= b for a, b in pairwise(points)):
            raise ConfigError(f"{table.where()}: {list(points)} are no ascending numbers")
    if [len(row) for row in times.seconds] != [len(times.num_tokens)] * len(times.contexts):
        raise ConfigError(
            f"{table.where()}: seconds must have {len(times.contexts)} rows, one for each of contexts, of "
            f"{len(times.num_tokens)}, one for each of num_tokens"
        )
