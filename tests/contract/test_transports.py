"""The transport contract, checked on every implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from butterfly.communication import Buffer, InProcessNetwork, KeyPair, Outbox, Transport, ZmqTransport
from butterfly.communication.in_process import InProcessOutbox
from butterfly.communication.zeromq import ZmqOutbox
from tests.contract.transport_contract import CHECKS, PATIENCE_S, Network


class InProcess:
    def __init__(self) -> None:
        self.transports: list[Transport] = []
        self._network = InProcessNetwork()

    def transport(self, name: str) -> Transport:
        self.transports.append(self._network.transport(name))
        return self.transports[-1]

    def send_raw(self, outbox: Outbox, frames: Sequence[Buffer]) -> None:
        assert isinstance(outbox, InProcessOutbox)
        outbox.send_frames(frames, "raw message", PATIENCE_S)


class Zmq:
    def __init__(self, encrypt: bool = True) -> None:
        self.transports: list[Transport] = []
        self._encrypt = encrypt

    def transport(self, name: str) -> Transport:
        self.transports.append(ZmqTransport(name, KeyPair.generate(), encrypt=self._encrypt))
        return self.transports[-1]

    def send_raw(self, outbox: Outbox, frames: Sequence[Buffer]) -> None:
        assert isinstance(outbox, ZmqOutbox)
        outbox.send_frames(frames, "raw message", PATIENCE_S)


@pytest.fixture(params=["in-process", "zmq", "zmq-plain"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    kind = str(request.param)
    network = InProcess() if kind == "in-process" else Zmq(encrypt=kind == "zmq")
    yield network
    for transport in network.transports:
        transport.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(check: Callable[[Network], None], network: Network, request: pytest.FixtureRequest) -> None:
    if check.__name__ == "check_an_impostor_cannot_be_reached" and "zmq-plain" in request.node.name:
        pytest.skip("without encryption the receiver proves nothing")
    check(network)
