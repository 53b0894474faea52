"""A machine's link to itself, measured through the real transport."""

from __future__ import annotations

import psutil
import pytest

from butterfly.communication import InProcessNetwork, KeyPair, ZmqTransport
from butterfly.errors import PeerTimeoutError
from butterfly.worker import loopback
from butterfly.worker.loopback import measure_loopback


@pytest.mark.parametrize("encrypt", [True, False])
def test_both_ways_are_measured_and_nothing_stays_open(encrypt: bool) -> None:
    found = measure_loopback(encrypt=encrypt)
    num_files = psutil.Process().num_fds()  # after the first time: pyzmq keeps a few for itself
    measure_loopback(encrypt=encrypt)
    assert psutil.Process().num_fds() == num_files
    assert found.encrypted == encrypt
    assert 0 < found.latency_s < 1
    assert all(1e6 < rate < 1e12 for rate in found.bytes_per_s)


def test_encryption_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def transport(name: str, keys: KeyPair, *, encrypt: bool) -> ZmqTransport:
        asked.append(encrypt)
        return ZmqTransport(name, keys, encrypt=encrypt)

    monkeypatch.setattr(loopback, "ZmqTransport", transport)
    measure_loopback(encrypt=False)
    measure_loopback(encrypt=True)
    assert asked == [False, False, True, True]


def test_an_end_that_hears_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "_DEADLINE_S", 0.01)
    network = InProcessNetwork()
    one, other = network.transport("one"), network.transport("other")
    inbox, reply_to = other.open_inbox(), one.open_inbox()
    way = loopback._Way(one.connect(inbox.address), inbox, reply_to)
    with pytest.raises(PeerTimeoutError, match=r"nothing came from one over loopback within 0\.01 s"):
        way.receive()
    one.close()
    other.close()
