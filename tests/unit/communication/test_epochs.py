from __future__ import annotations

import pytest
from msgspec.structs import replace

from butterfly.communication import EpochGate
from butterfly.errors import ProtocolError
from butterfly.messages import (
    Echo,
    Failed,
    Heartbeat,
    Introduce,
    LinksProbed,
    Loaded,
    LoadProgress,
    Message,
    PeerAddress,
    Ping,
    Probe,
    ProbeLinks,
    Profiled,
    Result,
    Shutdown,
    Step,
)
from butterfly.specs import ComputeProfile, StepPlan, TimeTable
from tests.unit.worker.slow_samples import request

TABLE = TimeTable(num_tokens=(1,), contexts=(0,), seconds=((1.0,),))


def plan_bound(epoch: int) -> list[Message]:
    return [
        Step(epoch=epoch, plan=StepPlan(step_id=1, slot=0, sequences=())),
        Result(epoch=epoch, step_id=1, samples=(), timings=()),
        LoadProgress(epoch=epoch, worker="w", loaded_bytes=1, total_bytes=2),
        Loaded(epoch=epoch, worker="w", weight_bytes=1),
        Failed(epoch=epoch, worker="w", reason="broken"),
    ]


def life(epoch: int) -> list[Message]:
    return [
        Ping(epoch=epoch),
        Shutdown(epoch=epoch),
        Heartbeat(epoch=epoch, worker="w", resident_bytes=1, kv_used_bytes=0),
        Introduce(epoch=epoch, peers=()),
        ProbeLinks(epoch=epoch, peers=()),
        LinksProbed(epoch=epoch, worker="w", links=()),
        Probe(epoch=epoch, number=1, reply_to=PeerAddress(name="w", endpoint="", public_key="")),
        Echo(epoch=epoch, number=1),
        replace(request(), epoch=epoch),
        Profiled(epoch=epoch, worker="w", profile=ComputeProfile(layers=(), head=TABLE, step_s=0.0)),
    ]


def test_the_current_epoch_passes() -> None:
    gate = EpochGate(3)
    assert all(gate.admits(message) for message in plan_bound(3))
    assert gate.num_dropped == 0


def test_older_plans_are_dropped_and_counted() -> None:
    gate = EpochGate(3)
    assert not any(gate.admits(message) for message in plan_bound(2))
    assert gate.num_dropped == 5


@pytest.mark.parametrize("message", plan_bound(4), ids=lambda message: type(message).__name__)
def test_a_plan_that_is_not_entered_yet_is_a_protocol_error(message: Message) -> None:
    with pytest.raises(ProtocolError, match=f"{type(message).__name__} of epoch 4.*epoch here is 3") as caught:
        EpochGate(3).admits(message, "early bird")
    assert caught.value.peer == "early bird"


@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_signs_of_life_always_pass(epoch: int) -> None:
    assert all(EpochGate(3).admits(message) for message in life(epoch))


def test_the_epoch_only_rises() -> None:
    gate = EpochGate()
    gate.raise_to(2)
    gate.raise_to(2)
    assert gate.epoch == 2
    with pytest.raises(ValueError, match="cannot go back"):
        gate.raise_to(1)
    assert gate.epoch == 2
