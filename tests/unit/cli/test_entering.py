"""From the options of `butterfly worker` to being let in."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from butterfly.calls import Answer, Call, Knock, Refused, Welcome
from butterfly.cli.entering import EntryOptions, entered, listening_hosts, stated_line, wanted_name
from butterfly.communication import KeyPair, ZmqTransport
from butterfly.communication.identity import JoinLine, make_secret
from butterfly.communication.services import Caller
from butterfly.errors import ConfigError
from butterfly.messages import Invitation, PeerAddress
from butterfly.worker import write_invitation

PATIENCE_S = 60.0
SECRET = make_secret()
LINE = JoinLine("127.0.0.1", 7700, KeyPair.generate().public_key, SECRET)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUTTERFLY_STATE", str(tmp_path / "state"))


class Coordinator:
    """Lets in who shows the secret, under the name that it wants."""

    def __init__(self) -> None:
        self._transport = ZmqTransport("coordinator", KeyPair.generate())
        self.knocks: list[tuple[Caller, Knock]] = []
        service = self._transport.open_service(self._answer)
        port = int(service.address.endpoint.rpartition(":")[2])
        self.line = JoinLine("127.0.0.1", port, self._transport.public_key, SECRET)

    def _answer(self, caller: Caller, call: Call) -> Answer:
        assert isinstance(call, Knock)
        self.knocks.append((caller, call))
        if call.secret != SECRET:
            return Refused(reason="the join secret is not known here")
        return Welcome(name=call.name, inbox_port=7, inbox_name="coordinator", encrypt=False)

    def close(self) -> None:
        self._transport.close()


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    with closing(Coordinator()) as coordinator:
        yield coordinator


def test_joining_twice_is_being_two_workers_that_stay_who_they_are(coordinator: Coordinator) -> None:
    options = EntryOptions(join=coordinator.line.text, name="desk", timeout_s=PATIENCE_S)
    with entered(options, {}) as first, entered(options, {}) as second:
        assert [first.invitation.name, second.invitation.name] == ["desk", "desk-2"]
        assert not first.encrypt  # as the coordinator says
        assert first.enter_again is not None
        assert first.enter_again() == first.invitation
    with entered(options, {}) as again:
        assert again.invitation == first.invitation
    keys = [caller.public_key for caller, _ in coordinator.knocks]
    assert keys[0] == keys[2] == keys[3] != keys[1]


def test_the_line_may_come_from_the_environment_or_standard_input(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = coordinator.line.text
    with entered(EntryOptions(timeout_s=PATIENCE_S), {"BUTTERFLY_JOIN": text}) as start:
        assert start.invitation.coordinator.public_key == coordinator.line.public_key
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{text}\nrest"))
    assert stated_line("-", {"BUTTERFLY_JOIN": "not this one"}) == coordinator.line
    assert sys.stdin.read() == "rest"


def test_an_invitation_goes_before_the_environment(tmp_path: Path) -> None:
    keys = KeyPair.generate()
    home = PeerAddress(name="coordinator", endpoint="tcp://127.0.0.1:5", public_key=LINE.public_key)
    invitation = Invitation(name="w0", coordinator=home, public_key=keys.public_key, secret_key=keys.secret_key)
    write_invitation(invitation, tmp_path / "invitation")
    options = EntryOptions(invitation=str(tmp_path / "invitation"), encrypt=False)
    with entered(options, {"BUTTERFLY_JOIN": LINE.text}) as start:
        assert start == (invitation, False, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (EntryOptions(), "say whom to join"),
        (EntryOptions(join=LINE.text, invitation="file"), "--invitation and --join are different ways"),
        (EntryOptions(join=LINE.text, discover=True), "--join and --discover are different ways"),
        (EntryOptions(join=LINE.text, secret=SECRET), "--secret is for --discover"),
        (EntryOptions(invitation="file", name="desk"), "--name is for --join"),
        (EntryOptions(join="butterfly://h:1"), "has no '#'"),
        (EntryOptions(join=LINE.text, name="a b"), "--name 'a b' cannot be"),
        (EntryOptions(discover=True), "BUTTERFLY_SECRET"),
        (EntryOptions(discover=True, secret=SECRET), "no key in front"),
    ],
)
def test_options_that_do_not_fit(options: EntryOptions, words: str) -> None:
    with pytest.raises(ConfigError) as caught, entered(options, {}):
        pass
    assert words in str(caught.value)
    assert SECRET not in f"{caught.value} {options!r}"


def test_the_host_gives_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Ada's Mac_2.local")
    assert wanted_name("") == "Ada-s-Mac_2.local"
    assert wanted_name("desk") == "desk"


def test_where_peers_reach_it() -> None:
    assert listening_hosts("", "tcp://127.0.0.1:7700") == ("127.0.0.1", "127.0.0.1")
    assert listening_hosts("127.0.0.1", "tcp://10.0.0.1:7700") == ("127.0.0.1", "127.0.0.1")
    assert listening_hosts("localhost", "tcp://10.0.0.1:7700")[1] == "localhost"
    assert listening_hosts("203.0.113.7", "tcp://127.0.0.1:7700") == ("0.0.0.0", "203.0.113.7")
    with pytest.raises(ConfigError, match="--listen-host no such host"):
        listening_hosts("no such host", "tcp://127.0.0.1:7700")


# --------------------------------------------------------------------------------- the real command


def worker(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "butterfly", "worker", *arguments],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_wrong_secret_ends_the_command_with_one_line(coordinator: Coordinator) -> None:
    wrong = JoinLine("127.0.0.1", coordinator.line.port, coordinator.line.public_key, make_secret())
    for ended in (worker("--join", "-", stdin=wrong.text + "\n"), worker(BUTTERFLY_JOIN=wrong.text)):
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == (
            f"error: the coordinator at {wrong.address} refuses this worker: the join secret is not known here\n"
        )


def test_nobody_there_ends_the_command_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        line = JoinLine("127.0.0.1", silent.getsockname()[1], LINE.public_key, SECRET)
        ended = worker("--join-timeout", "1", "--log-level", "error", BUTTERFLY_JOIN=line.text)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: the coordinator at {line.address} did not let us in within 1 s")
    assert SECRET not in ended.stderr
