"""The picture shows each node once, and is the same every time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from butterfly.cli.plan_picture import draw_plan, plan_figure
from butterfly.partitioning.predicting import predict
from butterfly.partitioning.problem import Placement, Problem
from butterfly.specs import ClusterSpec, Plan, WorkloadSpec
from tests.unit.partitioning.shapes import make_cluster, make_model

WORKLOAD = WorkloadSpec(context=10)
MODEL = make_model(num_layers=12)


def planned(num_stages: int, num_nodes: int) -> tuple[Plan, ClusterSpec]:
    cluster = make_cluster(*[1500] * num_nodes, bandwidth=1e6)
    ends = (*range(1, num_stages), 12)
    return predict(Problem.of(MODEL, cluster, WORKLOAD), Placement(tuple(range(num_stages)), ends), WORKLOAD), cluster


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(("num_stages", "num_nodes"), [(1, 1), (3, 4), (7, 9), (12, 12)])
def test_it_shows_every_node_once(num_stages: int, num_nodes: int) -> None:
    made, cluster = planned(num_stages, num_nodes)
    shown = texts(plan_figure(made, MODEL, cluster))
    assert [text for text in shown if text in made.left_out or text.startswith("w")] == [
        *(stage.worker for stage in made.stages),
        *(f"{name}\n1.50 kB\nholds nothing" for name in made.left_out),
    ]
    assert shown[0].startswith(f"TPOT {made.predicted_tpot_s * 1e3:.2f} ms")
    assert sum("MB/s" in text for text in shown) == num_stages + 1  # out, between, back
    assert "layers embedding + 0" in shown[3] or num_stages == 1


def test_bars_are_as_long_as_the_memory_they_stand_for() -> None:
    made, cluster = planned(2, 2)
    bars = [bar for bar in plan_figure(made, MODEL, cluster).axes[0].patches if isinstance(bar, Rectangle)]
    weights, kv, activations, free = (bar.get_width() for bar in bars[:4])
    first = made.stages[0]
    assert weights / kv == pytest.approx(first.weight_bytes / first.kv_bytes)
    assert activations == 0
    assert free / weights == pytest.approx((1500 - first.num_bytes) / first.weight_bytes)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_plan_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    made, cluster = planned(3, 4)
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for file in files:
        draw_plan(made, MODEL, cluster, file)
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert len(first) > 1000
    assert b"dc:date" not in first


def test_an_arrow_says_what_hidden_states_go_in() -> None:
    made, cluster = planned(3, 3)
    coded = msgspec.structs.replace(
        made, stages=(made.stages[0], msgspec.structs.replace(made.stages[1], codec="int8"), made.stages[2])
    )
    labels = [text for text in texts(plan_figure(coded, MODEL, cluster)) if "MB/s" in text]
    assert [text.endswith("MB/s\nint8") for text in labels] == [False, True, False, False]
