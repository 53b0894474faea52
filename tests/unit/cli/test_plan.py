"""What `butterfly plan` prints, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
import typer

from butterfly.cli.main import app
from butterfly.cli.options import parse_pin
from butterfly.cli.plan import PlanReport, plan
from butterfly.errors import ConfigError, InfeasiblePlanError, PlanError
from butterfly.specs import LayerPin
from butterfly.worker.resources import NodeResources

MODEL = "random:llama,layers=6"
CLUSTER = """
[cluster]
coordinator = "laptop"

[defaults]
latency = "20ms"
bandwidth = "50Mb/s"

[[sites]]
name = "home"
latency = "0.2ms"
bandwidth = "1Gb/s"

[[nodes]]
name = "laptop"
memory = "40MB"
memory_bandwidth = "20GB/s"
site = "home"

[[nodes]]
name = "desk"
memory = "45MB"
memory_bandwidth = "10GB/s"
site = "home"

[[nodes]]
name = "far"
memory = "16GB"
memory_bandwidth = "40GB/s"
"""

TWINS = """
[defaults]
latency = "5ms"
bandwidth = "50Mb/s"

[[nodes]]
name = "left"
memory = "1GB"
memory_bandwidth = "1GB/s"

[[nodes]]
name = "right"
memory = "1GB"
memory_bandwidth = "1GB/s"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    file = tmp_path / "cluster.toml"
    file.write_text(CLUSTER)
    return str(file)


def run(*arguments: str) -> None:
    app(["plan", MODEL, "--context", "256", *arguments], standalone_mode=False)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> PlanReport:
    run("--json", *arguments)
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.err == ""
    return msgspec.json.decode(printed.out, type=PlanReport)


def placed(found: PlanReport) -> dict[str, tuple[int, int]]:
    return {stage.worker: (stage.start, stage.end) for stage in found.plan.stages}


def test_the_explanation_for_people(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--cluster", cluster, "--compare")
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert lines[0].split()[:3] == ["node", "layers", "ends"]
    assert {line.split()[0] for line in lines[1:3]} == {"laptop", "desk"}
    assert any(line.startswith("boundary ") for line in lines)
    assert any(line.startswith("left out far: beside the others it would make a token ") for line in lines)
    comparison = lines.index("") + 1
    assert lines[comparison].split() == ["policy", "layers", "TTFT", "TPOT", "tokens/s", "cost"]
    policies = ("this plan", "even", "by memory", "by FLOPS", "network-blind", "one node")
    for line, name in zip(lines[comparison + 1 :], policies, strict=False):
        assert line.startswith(name)
    assert lines[comparison + 1].rstrip().endswith("1.00x")
    assert "1.00 GB more memory on laptop" in printed.out


def test_the_same_question_has_the_same_answer(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        run("--cluster", cluster, "--compare", "--objective", "balanced", "-c", "2")
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_json_is_one_object_with_what_was_asked_for(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "--cluster", cluster)
    assert set(placed(found)) == {"laptop", "desk"}
    assert found.comparison == ()
    assert found.what_if[0].speedup > 1
    whole = report(capsys, "--cluster", cluster, "--compare", "--no-what-if")
    assert whole.plan == found.plan
    assert len(whole.comparison) == 5
    assert whole.what_if == ()


def test_options_reach_the_planner(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--cluster", cluster, "--no-what-if")
    pinned = report(capsys, *at, "--layers", "far=2:6", "--layers", "desk=0:2")
    assert placed(pinned) == {"desk": (0, 2), "far": (2, 6)}
    assert pinned.plan.pin_cost_s > 0.02
    assert set(placed(report(capsys, *at, "--exclude", "desk", "--exclude", "laptop"))) == {"far"}
    assert set(placed(report(capsys, *at, "--max-nodes", "1"))) == {"far"}
    many = report(capsys, *at, "--objective", "throughput", "-c", "3").plan
    assert (many.objective, many.concurrency, many.kv_capacity_tokens) == ("throughput", 3, 3 * 256)
    assert report(capsys, *at, "--exclude", "desk", "--context", "0").plan.kv_capacity_tokens == 4096
    wide = report(capsys, *at, "--exclude", "desk", "--dtype", "float32").plan
    narrow = report(capsys, *at, "--exclude", "desk", "--weights", "int8").plan
    assert sum(stage.weight_bytes for stage in wide.stages) > sum(stage.weight_bytes for stage in narrow.stages)


def test_replicas_are_told_with_what_starts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = tmp_path / "twins.toml"
    cluster.write_text(TWINS)
    asked = ("--cluster", str(cluster), "--objective", "throughput", "-c", "4", "--no-what-if", "--replicas", "0")
    fleet = report(capsys, *asked).fleet
    assert fleet is not None
    assert [[stage.worker for stage in one.stages] for one in fleet.pipelines] == [["left"], ["right"]]
    assert [one.concurrency for one in fleet.pipelines] == [2, 2]
    run(*asked)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("replicas: 2 pipelines give ") and line.endswith("; proven optimal") for line in lines)
    serve = [line for line in lines if line.startswith("  butterfly serve ")]
    shared = "--objective throughput --max-sequences 2 --context 256 --layers"
    assert serve == [
        f"  butterfly serve {MODEL} --workers 0 --listen 0.0.0.0:7700 --port 8000 {shared} left=0:6",
        f"  butterfly serve {MODEL} --workers 0 --listen 0.0.0.0:7702 --port 8001 {shared} right=0:6",
    ]
    one_at_most = report(capsys, *asked[:-1], "1")
    assert one_at_most.fleet is None


def test_replicas_that_do_not_pay_are_said_not_to(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--cluster", cluster, "--no-what-if", "--objective", "throughput", "--replicas", "2")
    assert "replicas: no partition into several pipelines is faster than one pipeline; proven optimal" in (
        capsys.readouterr().out.splitlines()
    )
    with pytest.raises(ConfigError, match="add --objective throughput"):
        run("--cluster", cluster, "--no-what-if", "--replicas", "2")


def test_without_a_cluster_it_is_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = NodeResources(
        host="here", device="cpu", memory_bytes=10**9, memory_bandwidth_bytes_per_s=1e10, **_more_resources()
    )
    monkeypatch.setattr("butterfly.cli.plan.measure_resources", lambda: here)
    assert placed(report(capsys, "--compare")) == {"here": (0, 6)}


def _more_resources() -> dict[str, float]:
    """Whatever else is measured of a machine, as nothing."""
    known = ("host", "device", "memory_bytes", "memory_bandwidth_bytes_per_s")
    return {name: 0.0 for name in NodeResources.__dataclass_fields__ if name not in known}


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--layers", "desk"), "--layers 'desk' is no range of layers on a node; write it like laptop=0:14"),
        (("--picture", "plan.pdf"), r"--picture plan\.pdf: the name must end in \.svg or \.png"),
        (("--weights", "int3"), "unknown weights 'int3'"),
        (("--dtype", "int3"), "unknown dtype 'int3'"),
        (("--cluster", "no.toml"), r"cannot read no\.toml"),
        (("--picture", "/no/such/plan.svg"), r"cannot write /no/such/plan\.svg: .*check --picture"),
    ],
)
def test_what_is_refused(cluster: str, arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run("--cluster", cluster, "--no-what-if", *arguments)


def test_what_does_not_fit_is_refused_with_the_figures(cluster: str) -> None:
    with pytest.raises(InfeasiblePlanError, match=r"weights \(.*using node far or a context of \d+ tokens or "):
        run("--cluster", cluster, "--exclude", "far", "-c", "16", "--context", "1024")
    with pytest.raises(PlanError, match="there is no node fra: did you mean far"):
        run("--cluster", cluster, "--exclude", "fra")


def test_pins() -> None:
    assert parse_pin("a=b=0:14") == LayerPin(node="a=b", start=0, end=14)
    for text in ("=0:1", "a=0", "a=-1:2", "a=0:1:2x"):
        with pytest.raises(ConfigError):
            parse_pin(text)


def test_wrong_values_are_wrong_usage() -> None:
    for option, value in (("--objective", "speed"), ("-c", "0"), ("--max-nodes", "-1")):
        with pytest.raises(typer.TyperException):
            run(option, value)


def test_the_command_does_not_grow_by_accident() -> None:
    single = typer.Typer(add_completion=False)
    single.command()(plan)
    parameters = typer.main.get_command(single).params

    assert len([parameter for parameter in parameters if parameter.param_type_name == "option"]) <= 15
    assert all(getattr(parameter, "help", None) for parameter in parameters)


def test_a_picture_without_matplotlib_says_what_to_install(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "butterfly.cli.plan_picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--picture needs matplotlib, .*pip install 'butterfly-inference\[plots\]'"):
        run("--cluster", cluster, "--no-what-if", "--picture", str(tmp_path / "plan.svg"))
