"""The contract of services, checked on every implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from butterfly.communication import InProcessNetwork, KeyPair, ZmqTransport
from tests.contract.service_contract import CHECKS, Network, ServingTransport


class InProcess:
    def __init__(self) -> None:
        self.transports: list[ServingTransport] = []
        self._network = InProcessNetwork()

    def transport(self, name: str) -> ServingTransport:
        self.transports.append(self._network.transport(name))
        return self.transports[-1]


class Zmq:
    """`encrypt` is that of messages; calls are encrypted in any case."""

    def __init__(self, encrypt: bool) -> None:
        self.transports: list[ServingTransport] = []
        self._encrypt = encrypt

    def transport(self, name: str) -> ServingTransport:
        self.transports.append(ZmqTransport(name, KeyPair.generate(), encrypt=self._encrypt))
        return self.transports[-1]


@pytest.fixture(params=["in-process", "zmq", "zmq-plain"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    kind = str(request.param)
    network = InProcess() if kind == "in-process" else Zmq(encrypt=kind == "zmq")
    yield network
    for transport in reversed(network.transports):
        transport.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(check: Callable[[Network], None], network: Network) -> None:
    check(network)
