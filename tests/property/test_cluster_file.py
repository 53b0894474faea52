"""Every cluster survives its file: names in any script, figures to the last bit."""

from __future__ import annotations

import string
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.cluster_file import dump_cluster, parse_cluster, units
from butterfly.specs import ClusterSpec, CodecSpec, ComputeProfile, LayerProfile, LinkSpec, NodeSpec, TimeTable

amounts = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
times = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
sizes = st.integers(0, 1 << 60) | st.sampled_from([10**9, 1 << 30, 512 << 20, 3 * 10**12])
names = st.text(min_size=1, max_size=8) | st.text(alphabet=string.ascii_lowercase, min_size=1, max_size=2)


@st.composite
def tables(draw: st.DrawFn) -> TimeTable:
    grid = st.lists(st.integers(0, 10_000), min_size=1, max_size=3, unique=True).map(sorted)
    num_tokens, contexts = draw(grid), draw(grid)
    row = st.lists(times, min_size=len(num_tokens), max_size=len(num_tokens)).map(tuple)
    rows = draw(st.lists(row, min_size=len(contexts), max_size=len(contexts)))
    return TimeTable(num_tokens=tuple(num_tokens), contexts=tuple(contexts), seconds=tuple(rows))


profiles = st.builds(
    ComputeProfile,
    layers=st.lists(st.builds(LayerProfile, decode=tables(), prefill=tables()), max_size=2).map(tuple),
    head=tables(),
    step_s=times,
)


codecs = st.lists(
    st.builds(CodecSpec, name=names, ratio=amounts, encode_s_per_byte=times, decode_s_per_byte=times), max_size=2
).map(tuple)


@st.composite
def clusters(draw: st.DrawFn) -> ClusterSpec:
    taken = draw(st.lists(names.filter(lambda name: name != "coordinator"), min_size=1, max_size=4, unique=True))
    nodes = tuple(
        NodeSpec(
            name=name,
            memory_bytes=draw(sizes),
            memory_bandwidth_bytes_per_s=draw(amounts),
            device=draw(st.sampled_from(["cpu", "cuda:0"])),
            flops_per_s=draw(st.just(0.0) | amounts),
            site=draw(st.just("") | names),
            profile=draw(st.none() | profiles),
        )
        for name in taken
    )
    pairs = list(permutations(["coordinator", *taken], 2))
    links = tuple(
        LinkSpec(
            source=source,
            target=target,
            latency_s=draw(times),
            bandwidth_bytes_per_s=draw(amounts),
            software_s=draw(st.just(0.0004) | times),
            codecs=draw(st.just(()) | codecs),
        )
        for source, target in draw(st.lists(st.sampled_from(pairs), unique=True, max_size=6))
    )
    return ClusterSpec(nodes=nodes, links=links)


@settings(max_examples=200, deadline=None)
@given(clusters())
def test_what_is_written_is_what_is_read(cluster: ClusterSpec) -> None:
    text = dump_cluster(cluster)
    assert parse_cluster(text) == cluster
    assert dump_cluster(parse_cluster(text)) == text


@settings(max_examples=500, deadline=None)
@given(amounts, sizes)
def test_figures_keep_every_bit(amount: float, size: int) -> None:
    assert units.parse_rate(units.format_rate(amount), "") == amount
    assert units.parse_time(units.format_time(amount), "") == amount
    assert units.parse_count_rate(units.format_count_rate(amount), "") == amount
    assert units.parse_size(units.format_size(size), "") == size
