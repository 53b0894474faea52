"""What `butterfly status` says of predictions, and the cluster that it exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from butterfly.api import ApiServer, BoundPort, create_app
from butterfly.cli.main import app as command
from butterfly.cli.speeds import plan_lines, warning
from butterfly.cluster_file import read_cluster
from butterfly.errors import ConfigError
from butterfly.specs import (
    ClusterSpec,
    ClusterStatus,
    LinkSpec,
    MeasuredSpeed,
    NodeSpec,
    Plan,
    StagePlan,
    StageSpeed,
    StreamSpeed,
    WorkerStatus,
)
from tests.unit.api.doubles import ByteTokenizer, ScriptedEngine, served_model

CLUSTER = ClusterSpec(
    nodes=tuple(
        NodeSpec(name=name, memory_bytes=10**9, memory_bandwidth_bytes_per_s=1e10) for name in ("w0", "w1", "w2")
    ),
    links=(LinkSpec(source="w0", target="w1", latency_s=0.001, bandwidth_bytes_per_s=1e8, software_s=0.0),),
)


def make_stage(worker: str, start: int, hop_s: float) -> StagePlan:
    return StagePlan(
        worker=worker,
        start=start,
        end=start + 2,
        embedding=start == 0,
        head=start > 0,
        weight_bytes=100,
        kv_bytes=10,
        predicted_compute_s=0.010,
        predicted_hop_s=hop_s,
    )


PLAN = Plan(
    stages=(make_stage("w0", 0, 0.001), make_stage("w1", 2, 0.004)),
    predicted_tpot_s=0.025,
    bound_tpot_s=0.020,
    binding="compute of node w0",
    kv_capacity_tokens=64,
    predicted_ttft_s=0.5,
    prompt_tokens=512,
    predicted_tokens_per_s=80.0,
    concurrency=8,
    return_hop_s=0.001,
    left_out=("w2",),
)


def predicted(*compute_s: float, between_s: float = 0.006) -> StreamSpeed:
    stages = tuple(StageSpeed(worker=f"w{i}", compute_s=seconds) for i, seconds in enumerate(compute_s))
    return StreamSpeed(context=40, tpot_s=sum(compute_s) + between_s, stages=stages)


def measured(*compute_s: float, between_s: float = 0.006, num_steps: int = 64) -> MeasuredSpeed:
    speed = predicted(*compute_s, between_s=between_s)
    return MeasuredSpeed(num_steps=num_steps, context=40, tpot_s=speed.tpot_s, stages=speed.stages)


STATUS = ClusterStatus(
    phase="ready",
    epoch=1,
    model="tiny",
    workers=(
        WorkerStatus(name="w0", phase="ready", end=2),
        WorkerStatus(name="w1", phase="ready", start=2, end=4),
        WorkerStatus(name="w2", phase="standby"),
    ),
    plan=PLAN,
    cluster=CLUSTER,
    measured=measured(0.020, 0.010),
    predicted=predicted(0.010, 0.010),
)


class TestTheWarning:
    @pytest.mark.parametrize("slower", [measured(0.010, 0.015), measured(0.010, 0.005), measured(0.010, 0.010)])
    def test_is_silent_up_to_a_fifth(self, slower: MeasuredSpeed) -> None:
        assert warning(PLAN, predicted(0.010, 0.010), slower) == ""

    def test_names_the_stage_that_differs_most(self) -> None:
        words = warning(PLAN, predicted(0.010, 0.010), measured(0.011, 0.019))
        assert "a token takes 38% longer than predicted, most of it on w1: 19.00 ms, not 10.00 ms" in words
        assert "run `butterfly probe --refresh` for w1" in words

    def test_speaks_of_a_prediction_that_was_too_slow_too(self) -> None:
        words = warning(PLAN, predicted(0.010, 0.010), measured(0.003, 0.010))
        assert "a token takes 27% less than predicted, most of it on w0: 3.00 ms" in words

    def test_names_the_longest_way_when_it_is_the_links(self) -> None:
        words = warning(PLAN, predicted(0.010, 0.010), measured(0.010, 0.010, between_s=0.026))
        assert "77% longer than predicted, most of it between the stages (the longest way is to w1)" in words
        assert "start the server again to have the links measured anew" in words

    def test_waits_for_enough_steps(self) -> None:
        assert warning(PLAN, predicted(0.010, 0.010), measured(0.1, 0.1, num_steps=7)) == ""
        assert warning(PLAN, predicted(0.010, 0.010), measured(0.1, 0.1, num_steps=8)) != ""


def test_the_plans_figures_say_what_is_proven_and_what_constraints_cost() -> None:
    first, second = plan_lines(PLAN)
    assert first == "plan for latency: proven best; bound by compute of node w0"
    assert second == (
        "predicted: 25.00 ms per token (no less than 20.00 ms), 500.00 ms to the first after a prompt of 512, "
        "80.0 tokens/s with 8 streams"
    )
    pinned, _ = plan_lines(replace(PLAN, gap=0.031, pin_cost_s=0.002))
    assert pinned.startswith("plan for latency: at most 3.1% from the best, constraints cost 2.00 ms;")


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine(ByteTokenizer())
    engine.cluster = STATUS
    return engine


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with ApiServer(create_app(engine, served_model(ByteTokenizer())), BoundPort("127.0.0.1", 0)) as server:
        yield server.url


def test_status_shows_predictions_beside_measurements_and_who_stands_by(url: str) -> None:
    shown = CliRunner().invoke(command, ["status", url])
    assert shown.exit_code == 0, shown.output
    rows = [line.split() for line in shown.output.splitlines()]
    assert ["w2", "standby"] in [row[:2] for row in rows]
    assert ["w0", "10.00", "ms", "20.00", "ms", "+100%"] in rows
    assert ["w1", "10.00", "ms", "10.00", "ms", "+0%"] in rows
    assert ["all", "26.00", "ms", "36.00", "ms", "+38%"] in rows
    assert "warning: a token takes 38% longer than predicted, most of it on w0" in shown.output


def test_before_anything_ran_alone_there_are_only_predictions(engine: ScriptedEngine, url: str) -> None:
    engine.cluster = replace(STATUS, measured=None, predicted=None)
    shown = CliRunner().invoke(command, ["status", url])
    assert "predicted: 25.00 ms per token" in shown.output
    assert "measured" not in shown.output


def test_the_measured_cluster_is_exported(url: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    shown = CliRunner().invoke(command, ["status", url, "--export", str(file)])
    assert shown.exit_code == 0, shown.output
    assert read_cluster(file) == CLUSTER


def test_what_was_not_measured_cannot_be_exported(engine: ScriptedEngine, url: str, tmp_path: Path) -> None:
    engine.cluster = ClusterStatus(phase="measuring", epoch=0, model="tiny", workers=(), detail="measuring links: w0")
    shown = CliRunner().invoke(command, ["status", url, "--export", str(tmp_path / "cluster.toml")])
    assert isinstance(shown.exception, ConfigError)
    assert str(shown.exception) == "the cluster has not been measured yet: it is measuring (measuring links: w0)"
    assert list(tmp_path.iterdir()) == []
