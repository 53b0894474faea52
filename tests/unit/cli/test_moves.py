"""What `butterfly status` says of moves from plan to plan, and of workers that are not there."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from rich.console import Console
from typer.testing import CliRunner

from butterfly.api import ApiServer, BoundPort, create_app
from butterfly.cli.main import app as command
from butterfly.cli.moves import ago, moves_table
from butterfly.specs import ClusterStatus, Recovery, WorkerStatus
from tests.unit.api.doubles import ByteTokenizer, ScriptedEngine, served_model

KILLED = "worker w1 was killed by signal 9"
MOVE = Recovery(cause=KILLED, lost_s=100.0, noticed_s=100.25, planned_s=100.5, loaded_s=102.0)


def rows(*moves: Recovery, now_s: float) -> list[list[str]]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(moves_table(moves, now_s))
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in capture.get().splitlines()]


def test_a_move_has_its_time_its_parts_and_its_cause() -> None:
    heading, row = rows(MOVE, now_s=177.0)
    assert heading == ["move", "noticed after", "planned in", "loaded in", "because"]
    assert row == ["1 min ago", "0.25 s", "0.25 s", "1.50 s", KILLED]


def test_one_that_is_under_way_shows_what_is_known() -> None:
    _, row = rows(replace(MOVE, planned_s=None, loaded_s=None), now_s=103.25)
    assert row == ["3 s ago", "0.25 s", KILLED]


def test_the_newest_comes_first_and_old_ones_are_left_out() -> None:
    moves = [replace(MOVE, loaded_s=102.0 + place, cause=f"number {place}") for place in range(8)]
    shown = rows(*moves, now_s=200.0)[1:]
    assert [row[-1] for row in shown] == [f"number {place}" for place in (7, 6, 5, 4, 3)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s ago"), (59.0, "59 s ago"), (60.0, "1 min ago"), (7300.0, "2 h ago"), (2e5, "2 d ago")],
)
def test_how_long_ago(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_status_shows_moves_and_why_a_worker_is_not_there() -> None:
    engine = ScriptedEngine(ByteTokenizer())
    here, lost = WorkerStatus(name="w0", phase="ready"), WorkerStatus(name="w1", phase="lost", loss=KILLED)
    engine.cluster = ClusterStatus(
        phase="waiting", epoch=2, model="tiny", workers=(here, lost), recoveries=(MOVE,), now_s=110.0
    )
    with ApiServer(create_app(engine, served_model(ByteTokenizer())), BoundPort("127.0.0.1", 0)) as server:
        shown = CliRunner().invoke(command, ["status", server.url])
        assert shown.exit_code == 0, shown.output
        lines = shown.output.splitlines()
        assert lines.count(KILLED) == 1
        assert lines[-1].split("  ")[0].strip() == "8 s ago"
        engine.cluster = replace(engine.cluster, phase="ready", detail=KILLED, recoveries=())
        shown = CliRunner().invoke(command, ["status", server.url])
        assert shown.output.splitlines().count(KILLED) == 1, "it is said once"
        assert "because" not in shown.output
