"""Workers for places that appear, with a launcher, a clock and a cluster state that are played."""

from __future__ import annotations

from typing import Literal

import pytest

from butterfly.cluster import Deadlines, WorkerExit
from butterfly.config import ClusterConfig
from butterfly.embedded.place_filling import PlaceFiller
from butterfly.embedded.workforce import is_own_name
from butterfly.errors import LaunchError
from butterfly.messages import Invitation, PeerAddress
from butterfly.specs import WorkerStatus


def invitation(name: str) -> Invitation:
    address = PeerAddress(name="coordinator", endpoint="tcp://127.0.0.1:1", public_key="")
    return Invitation(name=name, coordinator=address, public_key="", secret_key="")


class Stage:
    """Two expected workers, and all that a filler sees and does."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.phase: Literal["starting", "ready", "waiting"] = "ready"
        self.known = ["worker-0", "worker-1"]
        self.num_free = 0
        self.exits: list[WorkerExit] = []
        self.started: list[str] = []
        self.killed: list[str] = []
        self.refuses = False
        self.filler = PlaceFiller(self, self.invite, self, self.known, Deadlines(), lambda: self.now_s)

    # ------------------------------------------------------------------------- the cluster state

    def snapshot(self) -> tuple[WorkerStatus, ...]:
        return tuple(WorkerStatus(name=name, phase="ready") for name in self.known)

    # ------------------------------------------------------------------------------ the launcher

    def start(self, invited: Invitation) -> None:
        if self.refuses:
            raise LaunchError("no place")
        self.started.append(invited.name)
        self.num_free = max(0, self.num_free - 1)

    def poll(self) -> list[WorkerExit]:
        exits, self.exits = self.exits, []
        return exits

    def kill(self, name: str) -> None:
        self.killed.append(name)

    def stop(self, timeout_s: float) -> None:
        self.killed.append("all")

    def num_free_places(self) -> int:
        return self.num_free

    # ----------------------------------------------------------------------------------- the test

    def invite(self, name: str) -> None:
        self.start(invitation(name))

    def poll_after(self, pause_s: float, *ended: WorkerExit) -> list[WorkerExit]:
        self.now_s += pause_s
        self.exits += ended
        return self.filler.poll()

    def began(self) -> list[str]:
        began, self.started = self.started, []
        return began


def killed(name: str) -> WorkerExit:
    return WorkerExit(name, -9, "")


def test_each_place_that_appears_gets_one_worker_with_a_new_name() -> None:
    stage = Stage()
    assert stage.poll_after(0.2) == []
    stage.num_free = 2
    stage.poll_after(0.2)
    stage.poll_after(0.2)
    stage.num_free = 1
    stage.poll_after(0.2)
    assert stage.began() == ["worker-2", "worker-3", "worker-4"]


def test_the_state_hears_only_of_workers_that_it_knows() -> None:
    stage = Stage()
    stage.num_free = 1
    stage.poll_after(0.2)
    assert stage.poll_after(0.2, killed("worker-2"), killed("worker-0")) == [killed("worker-0")]
    stage.poll_after(1.0)
    stage.known.append("worker-2")
    assert stage.poll_after(0.2, killed("worker-2")) == [killed("worker-2")]


def test_newcomers_that_end_are_started_again_after_pauses_that_grow() -> None:
    stage = Stage()
    stage.num_free = 1
    stage.poll_after(0.2)
    assert stage.began() == ["worker-2"]
    for pause_s in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        stage.poll_after(0.1, killed("worker-2"))
        stage.poll_after(pause_s - 0.01)
        assert stage.began() == []
        stage.poll_after(0.02)
        assert stage.began() == ["worker-2"]
    stage.poll_after(Deadlines().restart_forgiven_s, killed("worker-2"))
    stage.poll_after(1.0)
    assert stage.began() == ["worker-2"]


def test_who_was_told_to_end_is_left_alone() -> None:
    stage = Stage()
    stage.num_free = 1
    stage.poll_after(0.2)
    stage.poll_after(0.2, WorkerExit("worker-2", 0, ""))
    stage.poll_after(100.0)
    assert stage.began() == ["worker-2"]


def test_those_that_the_state_starts_again_are_not_started_twice() -> None:
    stage = Stage()
    assert stage.poll_after(0.2, killed("worker-0")) == [killed("worker-0")]
    stage.poll_after(100.0)
    assert stage.began() == []
    stage.filler.start(invitation("worker-0"))
    assert stage.began() == ["worker-0"]


def test_before_the_cluster_was_ready_nobody_else_does_it() -> None:
    stage = Stage()
    stage.phase = "starting"
    stage.poll_after(0.2, killed("worker-0"))
    stage.phase = "waiting"
    stage.poll_after(1.0)
    assert stage.began() == ["worker-0"]


def test_a_start_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.num_free, stage.refuses = 1, True
    stage.poll_after(0.2)
    stage.num_free = 0
    assert "worker-2 was not started: no place" in caplog.text
    stage.refuses = False
    stage.poll_after(1.0)
    assert stage.began() == ["worker-2"]


def test_ending_and_stopping_go_to_the_launcher() -> None:
    stage = Stage()
    stage.filler.kill("worker-0")
    stage.filler.stop(1.0)
    assert stage.killed == ["worker-0", "all"]


@pytest.mark.parametrize(
    ("num_workers", "ray", "own"),
    [(2, "", ["worker-0", "worker-1"]), (0, "10.0.0.1:6379", ["worker-0", "worker-1", "worker-2"]), (0, "", [])],
)
def test_names_of_our_own_workers_are_for_nobody_else(num_workers: int, ray: str, own: list[str]) -> None:
    config = ClusterConfig(model="m", num_workers=num_workers, ray_address=ray)
    names = ["worker-0", "worker-1", "worker-2", "worker-", "worker-x", "2", "desk"]
    assert [name for name in names if is_own_name(config, name)] == own
