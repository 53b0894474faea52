"""The real `butterfly worker --join` at a real door: it comes in by its secret, as who it was, and says goodbye."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from butterfly import __version__
from butterfly.calls import Answer, Call, Knock, Welcome
from butterfly.communication import Inbox, ZmqTransport
from butterfly.communication.identity import CoordinatorState
from butterfly.communication.services import Caller
from butterfly.coordinator.admission import Admission
from butterfly.messages import Join, Leave, Message, Ping

PATIENCE_S = 60.0


class House:
    """A coordinator's identity, inbox and door, and nothing behind them."""

    def __init__(self, state: CoordinatorState) -> None:
        self._transport = ZmqTransport("coordinator", state.keys)
        self.inbox = self._transport.open_inbox()
        port = int(self.inbox.address.endpoint.rpartition(":")[2])
        welcome = Welcome(name="", inbox_port=port, inbox_name="coordinator", encrypt=True)
        self._admission = Admission(state.book, welcome, self._transport.admit, version=__version__)
        door = self._transport.open_service(self._answer)
        secret = state.own_secret(time.time())
        assert secret is not None
        self.line = state.line(("127.0.0.1", int(door.address.endpoint.rpartition(":")[2])), secret)

    def _answer(self, caller: Caller, call: Call) -> Answer:
        assert isinstance(call, Knock)
        return self._admission.answer(caller, call, time.time())

    def greet(self, join: Join) -> None:
        """A worker has joined when it has heard something."""
        self._transport.admit(join.worker, join.inbox.public_key)
        with closing(self._transport.connect(join.inbox)) as outbox:
            outbox.send(Ping(epoch=0), timeout_s=PATIENCE_S)

    def close(self) -> None:
        self._transport.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with closing(House(CoordinatorState(tmp_path / "at-home"))) as house:
        yield house


@contextmanager
def started_worker(house: House, state: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "butterfly", "worker", "--join", "-", "--name", "desk", "--memory", "1G"]
    environment = {**os.environ, "BUTTERFLY_STATE": str(state), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(house.line.text.encode() + b"\n")
            process.stdin.close()  # it is no lifeline: who joins by a line lives on its own
            yield process
        finally:
            process.kill()


def wait_for(inbox: Inbox, kind: type[Message]) -> tuple[Message, str]:
    deadline_s = time.monotonic() + PATIENCE_S
    while (remaining_s := deadline_s - time.monotonic()) > 0:
        received = inbox.receive(remaining_s)
        if received is not None and isinstance(received.message, kind):
            return received.message, received.sender
    raise AssertionError(f"no {kind.__name__} within {PATIENCE_S} s")


def test_a_worker_that_is_killed_and_started_again_is_the_same_one(house: House, tmp_path: Path) -> None:
    keys = []
    for last_words in (signal.SIGKILL, signal.SIGTERM):
        with started_worker(house, tmp_path / "over-there") as process:
            join, sender = wait_for(house.inbox, Join)
            assert isinstance(join, Join)
            assert (join.worker, sender) == ("desk", "desk")
            keys.append(join.inbox.public_key)
            house.greet(join)
            process.send_signal(last_words)
            if last_words == signal.SIGTERM:
                _, sender = wait_for(house.inbox, Leave)
                assert sender == "desk"
                assert process.wait(PATIENCE_S) == 0
    assert keys[0] == keys[1]
