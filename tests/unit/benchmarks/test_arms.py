"""Command lines and places of the arms; the real servers are benchmarks' business."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.arms import ButterflyArm, LlamaCppArm
from benchmarks.lab import Node
from benchmarks.models import TINY_LLAMA, synthetic_llama
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.processes import ServerFailedError

NODES = [Node(f"n{i}", f"10.0.0.{i + 1}", f"space-{i}", (i,), None) for i in range(3)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_llama(tmp_path_factory.mktemp("models"), TINY_LLAMA)


def option(argv: list[str], name: str) -> list[str]:
    """Every value of an option."""
    return [value for word, value in pairwise(argv) if word == name]


def test_butterfly_starts_each_worker_on_its_node_and_listens_where_they_reach_it(tiny: Path) -> None:
    argv = ButterflyArm(options=("--no-encrypt",)).command(tiny, NODES, 1, 16, 512, NODES[0].address, 8000)
    assert option(argv, "--workers") == ["3"]
    assert option(argv, "--listen") == option(argv, "--host") == ["10.0.0.1"]
    assert [shlex.split(prefix) for prefix in option(argv, "--start-with")] == [node.command([]) for node in NODES]
    assert option(argv, "--context") == ["512"]
    assert option(argv, "--max-sequences") == ["16"]
    assert argv[-1] == "--no-encrypt"


def test_butterfly_without_nodes_is_one_worker_here(tiny: Path) -> None:
    argv = ButterflyArm().command(tiny, [], 2, 1, 512, "127.0.0.1", 8000)
    assert option(argv, "--workers") == ["1"]
    assert "--listen" not in argv
    assert "--start-with" not in argv


def test_llama_cpp_gives_every_stream_its_context(tiny: Path) -> None:
    argv = LlamaCppArm(LlamaCpp(Path("bin"))).command(tiny, [], 2, 4, 512)
    assert option(argv, "-np") == ["4"]
    assert option(argv, "-c") == ["2048"]
    assert option(argv, "-t") == option(argv, "-tb") == ["2"]
    assert "--rpc" not in argv
    assert "--no-cache-prompt" in argv


@pytest.mark.parametrize(
    ("local_share", "helpers", "offloaded"), [(True, 1, "1"), (True, 2, "2"), (False, 2, "3"), (False, 3, "3")]
)
def test_llama_cpp_splits_two_layers_and_the_head_evenly(
    tiny: Path, local_share: bool, helpers: int, offloaded: str
) -> None:
    addresses = [node.address for node in NODES[:helpers]]
    argv = LlamaCppArm(LlamaCpp(Path("bin")), local_share=local_share).command(tiny, addresses, 1, 1, 512)
    assert option(argv, "-ngl") == [offloaded]
    assert option(argv, "--rpc") == [",".join(f"{address}:50052" for address in addresses)]
    assert option(argv, "-ts") == [",".join("1" * helpers)]


def test_llama_cpp_can_keep_the_head_on_the_first_node(tiny: Path) -> None:
    arm = LlamaCppArm(LlamaCpp(Path("bin")), local_head=True)
    argv = arm.command(tiny, ["10.0.0.2"], 1, 1, 512)
    assert option(argv, "-ngl") == ["3"]  # both layers; the head counts, and is then taken back
    assert option(argv, "-ot") == [r"^(output|token_embd)\.weight$=CPU"]


def test_a_server_that_ends_is_reported_with_its_last_words(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "llama-server"
    broken.write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    broken.chmod(0o755)
    arm = LlamaCppArm(LlamaCpp(tmp_path))
    with pytest.raises(ServerFailedError, match=r"(?s)llama-server ended with status 3.*no such option"):
        arm.start(tiny, [], 1, 1, 64).__enter__()
