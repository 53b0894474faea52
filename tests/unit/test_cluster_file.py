"""Cluster files: what they mean, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from butterfly.cluster_file import dump_cluster, parse_cluster, read_cluster, units, write_cluster
from butterfly.errors import ConfigError
from butterfly.partitioning.costs import COORDINATOR, find_link
from butterfly.specs import ClusterSpec, CodecSpec, ComputeProfile, LayerProfile, LinkSpec, NodeSpec, TimeTable

TWO_SITES = """
[cluster]
coordinator = "laptop"

[defaults]
latency = "50ms"
bandwidth = "10Mb/s"

[[sites]]
name = "home"
latency = "0.2ms"
bandwidth = "1Gb/s"

[[nodes]]
name = "laptop"
memory = "16GB"
memory_bandwidth = "40GB/s"
flops = "800G"
site = "home"

[[nodes]]
name = "desk"
memory = "8GiB"
memory_bandwidth = "20GB/s"
device = "cuda:1"
site = "home"

[[nodes]]
name = "server"
memory = "64GB"
memory_bandwidth = "100GB/s"
site = "office"

[[nodes]]
name = "phone"
memory = "500MB"
memory_bandwidth = "5GB/s"
"""

NODE = '[[nodes]]\nname = "a"\nmemory = "1GB"\nmemory_bandwidth = "1GB/s"\n'
OTHER = NODE.replace('"a"', '"b"')
CODEC = '[[links.codecs]]\nname = "int8"\nratio = 0.53\nencode_s_per_byte = 2e-10\ndecode_s_per_byte = 1e-10\n'
LINKED = NODE + OTHER + '[[links]]\nfrom = "a"\nto = "b"\nlatency = "1ms"\nbandwidth = "1GB/s"\n'


def link(source: str, target: str, latency: str, bandwidth: str = "1GB/s") -> str:
    return f'[[links]]\nfrom = "{source}"\nto = "{target}"\nlatency = "{latency}"\nbandwidth = "{bandwidth}"\n'


def latency_ms(cluster: ClusterSpec, source: str, target: str) -> float:
    return find_link(cluster, source, target).latency_s * 1e3


# ------------------------------------------------------------------------------------- meaning


def test_nodes_are_read_with_their_units() -> None:
    laptop, desk, *_ = parse_cluster(TWO_SITES).nodes
    assert laptop == NodeSpec(
        name="laptop",
        memory_bytes=16_000_000_000,
        memory_bandwidth_bytes_per_s=4e10,
        flops_per_s=8e11,
        site="home",
    )
    assert (desk.memory_bytes, desk.device, desk.flops_per_s) == (8 << 30, "cuda:1", 0.0)


@pytest.mark.parametrize(
    ("more", "pair", "expected_ms"),
    [
        ("", ("laptop", "desk"), 0.2),  # inside the site
        ("", ("desk", "server"), 50.0),  # nothing said of these sites: the defaults
        ("", ("phone", "desk"), 50.0),
        ("", (COORDINATOR, "desk"), 0.2),  # the coordinator is where laptop is
        ("", (COORDINATOR, "laptop"), 0.06),  # on one machine: the planner's default
        (link("home", "office", "12ms"), ("desk", "server"), 12.0),
        (link("home", "office", "12ms"), ("server", "desk"), 12.0),  # and back
        (link("home", "office", "12ms"), (COORDINATOR, "server"), 12.0),
        (link("home", "office", "12ms") + link("office", "home", "30ms"), ("server", "desk"), 30.0),
        (link("home", "office", "12ms") + link("desk", "office", "9ms"), ("server", "desk"), 9.0),  # a name is closer
        (link("home", "office", "12ms") + link("desk", "office", "9ms"), ("laptop", "server"), 12.0),
        (link("desk", "home", "3ms"), ("laptop", "desk"), 3.0),  # closer than the site itself
        (link("desk", "laptop", "4ms") + link("desk", "home", "3ms"), ("laptop", "desk"), 4.0),
        (link("laptop", "office", "7ms"), (COORDINATOR, "server"), 7.0),  # by way of the node that it runs on
        (link("laptop", "office", "7ms") + link("coordinator", "server", "8ms"), (COORDINATOR, "server"), 8.0),
        (link("laptop", "office", "7ms") + link("coordinator", "server", "8ms"), ("server", "laptop"), 7.0),
        (link("coordinator", "laptop", "1ms"), ("laptop", COORDINATOR), 1.0),  # said, though on one machine
    ],
)
def test_the_more_specific_entry_wins(more: str, pair: tuple[str, str], expected_ms: float) -> None:
    assert latency_ms(parse_cluster(TWO_SITES + more), *pair) == pytest.approx(expected_ms)


def test_a_site_can_be_where_the_coordinator_is() -> None:
    cluster = parse_cluster(TWO_SITES.replace('coordinator = "laptop"', 'coordinator = "office"'))
    assert latency_ms(cluster, COORDINATOR, "laptop") == 50.0
    inside = parse_cluster(
        TWO_SITES.replace('coordinator = "laptop"', 'coordinator = "office"') + link("office", "office", "2ms")
    )
    assert latency_ms(inside, COORDINATOR, "server") == 2.0


def test_without_defaults_nothing_is_made_up() -> None:
    assert parse_cluster(NODE + OTHER).links == ()
    one_way = parse_cluster(NODE + OTHER + link("a", "b", "1ms"))
    assert [(found.source, found.target) for found in one_way.links] == [("a", "b")]
    assert latency_ms(one_way, "b", "a") == 1.0  # a missing direction is as the other one


def test_a_name_that_a_node_and_a_site_have_is_the_nodes() -> None:
    odd = NODE + OTHER + 'site = "a"\n' + NODE.replace('"a"', '"c"') + 'site = "a"\n'
    cluster = parse_cluster(odd + link("a", "c", "1ms"))
    assert [(found.source, found.target) for found in cluster.links] == [("a", "c")]


def test_codecs_are_read_for_every_pair_that_an_entry_speaks_of() -> None:
    codec = CodecSpec(name="int8", ratio=0.53, encode_s_per_byte=2e-10, decode_s_per_byte=1e-10)
    between = parse_cluster(LINKED + CODEC)
    assert [found.codecs for found in between.links] == [(codec,)]
    anywhere = parse_cluster(
        '[defaults]\nlatency = "1ms"\nbandwidth = "1Gb/s"\n' + CODEC.replace("links", "defaults") + NODE + OTHER
    )
    assert len(anywhere.links) == 6
    assert all(found.codecs == (codec,) for found in anywhere.links)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.5ms", 0.0005), ("2s", 2.0), ("60us", 6e-5), ("0ms", 0.0), (" 1 ms ", 0.001)]
)
def test_times(text: str, seconds: float) -> None:
    assert units.parse_time(text, "") == seconds


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("1Gb/s", 1.25e8), ("125MB/s", 1.25e8), ("100kb/s", 12_500.0), ("8b/s", 1.0)]
)
def test_rates(text: str, bytes_per_s: float) -> None:
    assert units.parse_rate(text, "") == bytes_per_s


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NODE + "memroy = 3", "lab.toml: nodes[0].memroy: unknown key; did you mean memory?"),
        (LINKED + CODEC.replace("ratio", "ration"), "links[0].codecs[0].ration: unknown key"),
        (LINKED + CODEC.replace("0.53", '"half"'), "links[0].codecs[0]: Expected `float`"),
        ("[cluter]\n" + NODE, "lab.toml: cluter: unknown key; did you mean cluster?"),
        (NODE.replace("1GB/s", "1Gb"), "lab.toml: nodes[0].memory_bandwidth: '1Gb' is not a rate; write it like"),
        (NODE.replace('"1GB"', '"1Gb"'), "lab.toml: nodes[0].memory: '1Gb' is not a size; write it like 16GB or 16GiB"),
        (NODE.replace('"1GB"', '"-1GB"'), "'-1GB' is not a size"),
        (NODE.replace('"1GB"', "16"), "lab.toml: nodes[0].memory: must be a string in quotes, not 16"),
        (NODE.replace("1GB/s", "0GB/s"), "lab.toml: nodes[0].memory_bandwidth: must be more than 0"),
        (NODE.replace('memory = "1GB"', ""), "lab.toml: nodes[0]: needs memory"),
        (NODE + NODE, "lab.toml: nodes[1].name: 'a' is the name of two"),
        (NODE.replace('"a"', '""'), "lab.toml: nodes[0].name: must not be empty"),
        (NODE.replace('"a"', '"coordinator"'), "nodes[0].name: 'coordinator' is the coordinator's name, no node's"),
        ("", "lab.toml: needs nodes, each under [[nodes]]"),
        ("nodes = 3", "lab.toml: nodes: must be tables, each under [[nodes]]"),
        ("nodes = [3]", "lab.toml: nodes[0]: must be a table"),
        (NODE + link("a", "labtop", "1ms"), "lab.toml: links[0].to: no node or site 'labtop'; known: a, coordinator"),
        (NODE + OTHER + link("a", "b", "1m"), "lab.toml: links[0].latency: '1m' is not a time; write it like 0.5ms"),
        (NODE + OTHER + link("a", "b", "1ms") * 2, "lab.toml: links[1]: a second link from a to b"),
        ('[cluster]\ncoordinator = "aa"\n' + NODE, "cluster.coordinator: no node or site 'aa'; did you mean a?"),
        ('[defaults]\nlatency = "1ms"\n' + NODE, "lab.toml: defaults: needs bandwidth"),
        ("[[nodes", "lab.toml: "),
        (NODE + "[nodes.profile]\nstep_s = 1.0", "lab.toml: nodes[0].profile: Object missing required field"),
        (NODE + "[nodes.profile]\nstep = 1.0", "lab.toml: nodes[0].profile.step: unknown key; did you mean step_s?"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_cluster(text, "lab.toml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("{num_tokens = [1, 1], contexts = [0], seconds = [[1.0, 2.0]]}", "[1, 1] are no ascending numbers"),
        ("{num_tokens = [], contexts = [0], seconds = [[]]}", "[] are no ascending numbers"),
        ("{num_tokens = [1, 2], contexts = [0], seconds = [[1.0]]}", "seconds must have 1 rows"),
        ("{num_tokens = [1], contexts = [0], second = [[1.0]]}", "nodes[0].profile.head.second: unknown key"),
    ],
)
def test_a_measured_table_must_be_whole(table: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_cluster(NODE + f"[nodes.profile]\nstep_s = 0.1\nlayers = []\nhead = {table}")
    assert problem in str(refused.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*no\.toml: No such file"):
        read_cluster(tmp_path / "no.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml is no text in UTF-8"):
        read_cluster(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match=r"cannot write .*: Is a directory"):
        write_cluster(tmp_path, parse_cluster(NODE))


# --------------------------------------------------------------------------------------- export


def test_an_export_is_for_people(tmp_path: Path) -> None:
    table = TimeTable(num_tokens=(1, 4), contexts=(0,), seconds=((1.5e-05, 0.1),))
    profile = ComputeProfile(layers=(LayerProfile(decode=table, prefill=table),), head=table, step_s=0.0001)
    node = NodeSpec(
        name="laptop", memory_bytes=16 * 10**9, memory_bandwidth_bytes_per_s=4.05e10, site="home", profile=profile
    )
    plain = NodeSpec(name="desk", memory_bytes=8 << 30, memory_bandwidth_bytes_per_s=2e10, flops_per_s=8e11)
    wire = LinkSpec(source="laptop", target="desk", latency_s=0.0005, bandwidth_bytes_per_s=1.25e8)
    cluster = ClusterSpec(nodes=(node, plain), links=(wire,))
    file = tmp_path / "cluster.toml"
    write_cluster(file, cluster)

    assert read_cluster(file) == cluster
    lines = file.read_text().splitlines()
    expected = ('memory = "16GB"', 'memory_bandwidth = "40.5GB/s"', 'memory = "8GiB"', 'flops = "800G"')
    assert set(expected) <= set(lines)
    assert lines[-5:] == ['from = "laptop"', 'to = "desk"', 'latency = "0.5ms"', 'bandwidth = "125MB/s"', lines[-1]]
    assert lines[-1] == 'software = "0.4ms"'


def test_an_expanded_file_means_the_same_when_it_is_exported() -> None:
    cluster = parse_cluster(TWO_SITES + link("home", "office", "12ms"))
    assert parse_cluster(dump_cluster(cluster)) == cluster
