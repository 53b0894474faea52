"""The door of a server that starts all of its workers itself, on other machines: it gives tensors to nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from butterfly.calls import DescribeTensors, Knock, Refused
from butterfly.communication import KeyPair, ServiceClient, ZmqTransport
from butterfly.config import ClusterConfig
from butterfly.embedded import unwatched
from butterfly.embedded.building import open_model
from butterfly.embedded.door import Door, open_door, told_host
from butterfly.messages import PROTOCOL_VERSION

TINY = "random:llama,hidden=64,layers=2"
PATIENCE_S = 10.0
CONFIG = ClusterConfig(model=TINY, num_workers=0, ray_address="127.0.0.1:6379")


@pytest.fixture
def transport() -> Iterator[ZmqTransport]:
    with closing(ZmqTransport("coordinator", KeyPair.generate())) as transport:
        yield transport


@pytest.fixture
def door(transport: ZmqTransport) -> Iterator[Door]:
    with open_door(CONFIG, None, transport, transport.open_inbox(), open_model(CONFIG, unwatched)) as door:
        yield door


@pytest.fixture
def caller(transport: ZmqTransport, door: Door) -> Iterator[tuple[KeyPair, ServiceClient]]:
    keys = KeyPair.generate()
    with closing(ZmqTransport("worker-0", keys)) as own, closing(own.connect_service(door.blobs)) as client:
        yield keys, client


def test_nobody_joins_and_there_is_no_line(door: Door, caller: tuple[KeyPair, ServiceClient]) -> None:
    _, client = caller
    assert (door.join_line, door.revoked()) == ("", ())
    knock = Knock(secret="a guess", name="desk", protocol_version=PROTOCOL_VERSION, version="1")
    answer, _ = client.call(knock, PATIENCE_S)
    assert isinstance(answer, Refused)
    assert "nobody may join this server" in answer.reason


def test_workers_of_ours_may_ask_for_tensors_and_strangers_may_not(
    transport: ZmqTransport, caller: tuple[KeyPair, ServiceClient]
) -> None:
    keys, client = caller
    question = DescribeTensors(names=("layers.0.gate",))
    stranger, _ = client.call(question, PATIENCE_S)
    transport.admit("worker-0", keys.public_key)
    known, _ = client.call(question, PATIENCE_S)
    assert isinstance(stranger, Refused)
    assert "is not admitted here" in stranger.reason
    assert isinstance(known, Refused)  # a random model has no file: that is an answer of the shelf
    assert known.reason == "tensor layers.0.gate has no bytes in a file"


def test_workers_are_told_the_address_towards_them() -> None:
    everywhere = ClusterConfig(model=TINY, ray_address="127.0.0.1:6379", listen_host="0.0.0.0")
    assert told_host(everywhere) == "127.0.0.1"
    assert told_host(ClusterConfig(model=TINY, listen_host="10.0.0.7")) == "10.0.0.7"
