"""Knocking until somebody answers: at a scripted coordinator, and at a real one over real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from butterfly.calls import Answer, Call, FetchBlob, Knock, Refused, TensorDigests, Welcome
from butterfly.communication import KeyPair, ZmqTransport
from butterfly.communication.identity import BookFile, JoinLine, make_secret, make_token
from butterfly.communication.services import Caller, ServiceClient
from butterfly.coordinator.admission import Admission
from butterfly.errors import CommunicationError, ConfigError, PeerTimeoutError, ProtocolError
from butterfly.messages import PROTOCOL_VERSION, PeerAddress, Ping
from butterfly.worker import joining
from butterfly.worker.joining import WayIn

PATIENCE_S = 20.0
KEYS = KeyPair.generate()
LINE = JoinLine(host="::1", port=7700, public_key=KeyPair.generate().public_key, secret=make_secret())
WELCOME = Welcome(name="desk-2", inbox_port=7701, inbox_name="coordinator", encrypt=True)
NOT_YET = Refused(reason="the coordinator is busy", is_final=False)

Script = Sequence[Answer | PeerTimeoutError]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_PAUSE_S", 0.01)


class Scripted:
    """Answers one knock after the other, and then always as the last one."""

    def __init__(self, script: Script) -> None:
        self._script = list(script)
        self.knocks: list[Knock] = []
        self.is_open = False

    @contextmanager
    def connect(self, door: PeerAddress) -> Iterator[Scripted]:
        assert door == LINE.door
        self.is_open = True
        yield self
        self.is_open = False

    def call(self, call: Call, timeout_s: float) -> tuple[Answer, memoryview | None]:
        assert self.is_open
        assert timeout_s > 0
        assert isinstance(call, Knock)
        self.knocks.append(call)
        answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(answer, PeerTimeoutError):
            raise answer
        return answer, None


def way_to(coordinator: Scripted) -> WayIn:
    return WayIn(LINE, "desk", KEYS, coordinator.connect, "0.5")


def test_a_welcome_becomes_an_invitation() -> None:
    coordinator = Scripted([WELCOME])
    invitation, encrypt = way_to(coordinator).enter(PATIENCE_S)
    assert encrypt
    assert invitation.name == "desk-2"
    assert (invitation.public_key, invitation.secret_key) == (KEYS.public_key, KEYS.secret_key)
    assert invitation.coordinator == PeerAddress(
        name="coordinator", endpoint="tcp://[::1]:7701", public_key=LINE.public_key
    )
    (knock,) = coordinator.knocks
    assert (knock.secret, knock.name, knock.version) == (LINE.secret, "desk", "0.5")
    assert knock.protocol_version == PROTOCOL_VERSION


def test_a_coordinator_that_is_not_there_yet_is_waited_for() -> None:
    coordinator = Scripted([PeerTimeoutError("nobody answers"), NOT_YET, WELCOME])
    assert way_to(coordinator).enter(PATIENCE_S).invitation.name == "desk-2"
    assert len(coordinator.knocks) == 3


@pytest.mark.parametrize(
    "answer", [PeerTimeoutError("nobody answers"), Refused(reason="nobody answers", is_final=False)]
)
def test_after_the_deadline_the_last_words_are_told(answer: Answer | PeerTimeoutError) -> None:
    with pytest.raises(
        PeerTimeoutError, match=r"at \[::1\]:7700 did not let us in within 0\.1 s: nobody answers"
    ) as late:
        way_to(Scripted([answer])).enter(0.1)
    assert late.value.peer == "the coordinator at [::1]:7700"
    assert LINE.secret not in str(late.value)


def test_a_final_no_ends_it_with_its_reason() -> None:
    coordinator = Scripted([NOT_YET, Refused(reason="join token a1 was revoked")])
    with pytest.raises(CommunicationError, match=r"7700 refuses this worker: join token a1 was revoked"):
        way_to(coordinator).enter(PATIENCE_S)
    assert not isinstance(coordinator.knocks[-1], FetchBlob)
    assert len(coordinator.knocks) == 2


def test_an_answer_to_something_else_is_an_error() -> None:
    with pytest.raises(ProtocolError, match=r"7700 answered a knock with TensorDigests"):
        way_to(Scripted([TensorDigests(digests=())])).enter(PATIENCE_S)


def test_a_way_can_be_taken_again() -> None:
    coordinator = Scripted([WELCOME, replace(WELCOME, inbox_port=9, name="desk-3")])
    way_in = way_to(coordinator)
    entry = way_in.enter(PATIENCE_S)
    again = way_in.enter_again(entry, PATIENCE_S)
    assert (again.name, again.coordinator.endpoint) == ("desk-3", "tcp://[::1]:9")
    assert again.secret_key == entry.invitation.secret_key


def test_a_coordinator_that_encrypts_no_more_is_not_joined_again() -> None:
    way_in = way_to(Scripted([WELCOME, replace(WELCOME, encrypt=False)]))
    with pytest.raises(ConfigError, match="wants unencrypted links now: start this worker again"):
        way_in.enter_again(way_in.enter(PATIENCE_S), PATIENCE_S)


# ------------------------------------------------------------------------------------ real sockets


class House:
    """A coordinator's transport with its inbox and its door, and the secret that opens it."""

    def __init__(self, folder: Path, keys: KeyPair, port: int = 0) -> None:
        self.transport = ZmqTransport("coordinator", keys)
        self.inbox = self.transport.open_inbox()
        self.book = BookFile(folder)
        self.secret = make_secret()
        self.book.change(lambda book: book.with_token(make_token(self.secret, time.time())))
        home = replace(WELCOME, inbox_port=port_of(self.inbox.address))
        self.admission = Admission(self.book, home, self.transport.admit, version="0.5")
        self.door = self.transport.open_service(self.answer, port)
        self.line = JoinLine("127.0.0.1", port_of(self.door.address), keys.public_key, self.secret)

    def answer(self, caller: Caller, call: Call) -> Answer:
        assert isinstance(call, Knock)
        return self.admission.answer(caller, call, time.time())

    def close(self) -> None:
        self.transport.close()


def port_of(address: PeerAddress) -> int:
    return int(address.endpoint.rpartition(":")[2])


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with closing(House(tmp_path, KeyPair.generate())) as house:
        yield house


def real_way(line: JoinLine, keys: KeyPair, name: str = "desk") -> WayIn:
    @contextmanager
    def connect(door: PeerAddress) -> Iterator[ServiceClient]:
        with closing(ZmqTransport(name, keys)) as transport, closing(transport.connect_service(door)) as client:
            yield client

    return WayIn(line, name, keys, connect, "0.5")


def test_who_was_let_in_is_heard_at_the_inbox_under_its_name(house: House) -> None:
    for keys, name in ((KEYS, "desk"), (KeyPair.generate(), "desk-2")):
        invitation, _ = real_way(house.line, keys).enter(PATIENCE_S)
        assert invitation.name == name
        with closing(ZmqTransport(name, keys)) as transport:
            transport.connect(invitation.coordinator).send(Ping(epoch=0), timeout_s=PATIENCE_S)
            received = house.inbox.receive(PATIENCE_S)
        assert received is not None
        assert (received.sender, received.message) == (name, Ping(epoch=0))


def test_a_wrong_secret_gets_a_no_over_the_wire(house: House) -> None:
    line = JoinLine(house.line.host, house.line.port, house.line.public_key, make_secret())
    with pytest.raises(CommunicationError, match="refuses this worker: the join secret is not known here"):
        real_way(line, KEYS).enter(PATIENCE_S)
    with closing(ZmqTransport("desk", KEYS)) as stranger, pytest.raises(PeerTimeoutError):
        stranger.connect(house.inbox.address).send(Ping(epoch=0), timeout_s=0.2)
    assert house.inbox.receive_nowait() is None


def test_a_line_with_another_key_never_shows_its_secret(house: House) -> None:
    """Somebody in the middle with a key of its own: the handshake fails before the first byte of the knock."""
    line = JoinLine(house.line.host, house.line.port, KeyPair.generate().public_key, house.secret)
    with pytest.raises(PeerTimeoutError, match=r"did not let us in within 0\.5 s: .*another key than expected"):
        real_way(line, KEYS).enter(0.5)
    assert house.book.read().workers == ()


def test_a_revoked_worker_is_told_so(house: House) -> None:
    way_in = real_way(house.line, KEYS)
    entry = way_in.enter(PATIENCE_S)
    house.book.change(lambda book: book.with_revoked("desk", time.time()))
    assert house.admission.revoked_names() == ("desk",)
    with pytest.raises(CommunicationError, match=r"the key of this worker \(desk\) was revoked"):
        way_in.enter_again(entry, PATIENCE_S)


def test_a_worker_is_the_same_one_for_a_coordinator_that_was_started_anew(tmp_path: Path) -> None:
    keys = KeyPair.generate()
    with closing(House(tmp_path, keys)) as house:
        way_in = real_way(house.line, KEYS)
        entry = way_in.enter(PATIENCE_S)
        port = house.line.port
    with closing(House(tmp_path, keys, port)):
        assert way_in.enter_again(entry, PATIENCE_S).name == entry.invitation.name == "desk"
