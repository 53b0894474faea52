"""Last words to a worker that was given up: how often, how long, and that they end when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from butterfly.communication import Inbox, InProcessNetwork, Outbox, Transport
from butterfly.coordinator.farewells import Farewells
from butterfly.errors import CommunicationError, PeerTimeoutError
from butterfly.messages import Dismiss, Message, Ping


class Parting:
    """A coordinator's end of a connection, and the worker's inbox."""

    def __init__(self) -> None:
        network = InProcessNetwork()
        self.home: Transport = network.transport("coordinator")
        self.away: Transport = network.transport("w0")
        self.away.admit("coordinator", self.home.public_key)
        self.inbox: Inbox = self.away.open_inbox()
        self.farewells = Farewells()

    def outbox(self) -> Outbox:
        return self.home.connect(self.inbox.address)

    def heard(self) -> list[Message]:
        messages = []
        while (received := self.inbox.receive_nowait()) is not None:
            messages.append(received.message)
        return messages

    def close(self) -> None:
        self.farewells.close()
        self.home.close()
        self.away.close()


@pytest.fixture
def parting() -> Iterator[Parting]:
    with closing(Parting()) as parting:
        yield parting


def is_closed(outbox: Outbox) -> bool:
    try:
        outbox.send(Ping(epoch=0), timeout_s=0)
    except PeerTimeoutError:
        return False
    except CommunicationError:
        return True
    return False


WORDS = Dismiss(epoch=0, workers=("w0",))


def test_it_is_told_once_a_second_for_a_while(parting: Parting) -> None:
    outbox = parting.outbox()
    parting.farewells.begin("w0", outbox, 100.0)
    assert parting.heard() == [WORDS], "at once"
    for tenth in range(1, 10):
        parting.farewells.go_on(100.0 + tenth / 10)
    assert parting.heard() == []
    for second in range(1, 60):
        parting.farewells.go_on(100.0 + second)
    assert parting.heard() == [WORDS] * 11
    assert is_closed(outbox)


def test_one_that_is_back_hears_no_more_of_it(parting: Parting) -> None:
    outbox = parting.outbox()
    parting.farewells.begin("w0", outbox, 100.0)
    parting.farewells.end("w0")
    parting.farewells.end("somebody else")
    parting.farewells.go_on(105.0)
    assert parting.heard() == [WORDS]
    assert is_closed(outbox)


def test_one_that_is_cut_off_holds_nobody_up_and_hears_it_later(parting: Parting) -> None:
    parting.away.expel("coordinator")
    parting.farewells.begin("w0", parting.outbox(), 100.0)
    parting.away.admit("coordinator", parting.home.public_key)
    parting.farewells.go_on(100.5)
    assert parting.heard() == []
    parting.farewells.go_on(101.0)
    assert parting.heard() == [WORDS]


def test_there_is_one_connection_for_each_name(parting: Parting) -> None:
    first, second = parting.outbox(), parting.outbox()
    parting.farewells.begin("w0", first, 100.0)
    parting.farewells.begin("w0", second, 101.0)
    assert (is_closed(first), is_closed(second)) == (True, False)
    parting.farewells.close()
    assert is_closed(second)
