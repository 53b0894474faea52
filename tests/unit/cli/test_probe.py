"""`butterfly probe` without its printing: a real profile of a tiny model, and what is shown of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from butterfly.cli.main import app
from butterfly.cli.options import cluster_config
from butterfly.cli.probe import ProbeReport, measure_node, profile_table, rates_table, with_profile
from butterfly.coordinator.measured_checks import check_profile
from butterfly.errors import ConfigError
from butterfly.specs import ComputeProfile, LayerProfile, NodeSpec, TimeTable
from butterfly.worker.loopback import LoopbackSpeed

MODEL = "random:gemma3,hidden=64,layers=7,heads=4,kv_heads=2,vocab=300,context=600,window=32,bits=8"
NODE = NodeSpec(name="here", memory_bytes=1 << 30, memory_bandwidth_bytes_per_s=1e10)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    threads = torch.get_num_threads()
    monkeypatch.setenv("BUTTERFLY_CACHE", str(tmp_path))
    yield tmp_path / "profiles"
    torch.set_num_threads(threads)


def printed(table: Table) -> list[list[str]]:
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return [line.split() for line in file.getvalue().splitlines()]


def test_a_model_is_measured_once(own_cache: Path) -> None:
    config = cluster_config(MODEL, 1, "cpu", "auto", "auto", 1, "1G", 0)
    node, weights = with_profile(NODE, config, refresh=False)
    assert weights == "int4"
    assert node.profile is not None
    check_profile(node.profile, 2, "here")
    assert node.profile.layers[0].prefill.num_tokens == (16, 64, 256)
    assert len(list(own_cache.iterdir())) == 1
    assert with_profile(NODE, config, refresh=False) == (node, weights)


def test_a_model_too_large_for_this_machine_is_measured_all_the_same() -> None:
    config = cluster_config(MODEL, 1, "cpu", "float32", "auto", 1, "100k", 0)
    node, weights = with_profile(replace(NODE, memory_bytes=100 << 10), config, refresh=False)
    assert weights == "int4"
    assert node.profile is not None
    check_profile(node.profile, 2, "here")


def test_a_node_without_a_model() -> None:
    node, rates = measure_node("cpu", 1, "float32", 5 << 20)
    assert (node.memory_bytes, node.device, node.profile) == (5 << 20, "cpu", None)
    assert node.flops_per_s == rates["float32"] > 1e8
    assert node.memory_bandwidth_bytes_per_s > 1e8
    assert torch.get_num_threads() == 1
    with pytest.raises(ConfigError, match="unknown device"):
        measure_node("tpu", 1, "float32", None)


def test_rates_are_shown_with_their_units() -> None:
    lines = printed(rates_table(NODE, {"bfloat16": 2e11, "float32": 1e11}))
    assert ["memory", "1.0", "GiB"] in lines
    assert ["memory", "bandwidth", "10.0", "GB/s", "(one", "thread)"] in lines
    assert ["bfloat16", "products", "200", "Gop/s"] in lines
    assert lines[-1][:3] == ["int8", "products", "no"]
    assert ["int8", "products", "300", "Gop/s"] in printed(rates_table(NODE, {"int8": 3e11}))


def test_links_are_shown_beside_each_other() -> None:
    encrypted = LoopbackSpeed(encrypted=True, latency_s=7e-5, bytes_per_s=(1.5e9, 1.25e9))
    plain = replace(encrypted, encrypted=False)
    lines = printed(rates_table(NODE, {"int8": 1e9}, (encrypted, plain)))
    shown = ["70", "us", "for", "4", "KiB;", "1.50", "GB/s", "there,", "1.25", "GB/s", "back"]
    assert lines[-2:] == [["loopback,", "encrypted", *shown], ["loopback,", "plain", *shown]]


def test_json_has_the_node_and_its_loopback(capsys: pytest.CaptureFixture[str]) -> None:
    app(["probe", "--device", "cpu", "--threads", "1", "--memory", "1G", "--json"], standalone_mode=False)
    found = msgspec.json.decode(capsys.readouterr().out, type=ProbeReport)
    assert found.node.memory_bytes == 1 << 30
    assert [link.encrypted for link in found.loopback] == [True, False]


def test_every_time_stands_under_its_number_of_tokens() -> None:
    decode = TimeTable(num_tokens=(1, 4), contexts=(16, 512), seconds=((0.001, 0.002), (0.003, 0.004)))
    prefill = TimeTable(num_tokens=(4, 16), contexts=(0,), seconds=((0.005, 0.006),))
    head = TimeTable(num_tokens=(1,), contexts=(0,), seconds=((0.007,),))
    one = ComputeProfile(layers=(LayerProfile(decode=decode, prefill=prefill),), head=head, step_s=0.0005)
    assert printed(profile_table(one)) == [
        ["part", "context", "1", "4", "16"],
        ["layer,", "decode", "16", "1.000", "2.000"],
        ["layer,", "decode", "512", "3.000", "4.000"],
        ["layer,", "prefill", "0", "5.000", "6.000"],
        ["head", "0", "7.000"],
        ["step", "0.500"],
    ]
    two = replace(one, layers=one.layers * 2)
    assert [line[:3] for line in printed(profile_table(two))[4:6]] == [["layer", "kind", "1,"]] * 2
