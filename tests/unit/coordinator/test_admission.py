"""Who is let in, under which name, and who is sent away with which words."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from msgspec.structs import replace

from butterfly.calls import Knock, Refused, Welcome
from butterfly.communication.identity import Book, BookFile, make_secret, make_token
from butterfly.communication.services import Caller
from butterfly.coordinator.admission import Admission
from butterfly.messages import PROTOCOL_VERSION

NOW_S = 1_800_000_000.0
SECRET = make_secret()
HOME = Welcome(name="", inbox_port=7701, inbox_name="coordinator", encrypt=True)


class Door:
    """A coordinator's admission over a book of its own, and whom it had let in by the transport."""

    def __init__(self, folder: Path) -> None:
        self.book = BookFile(folder)
        self.admitted: dict[str, str] = {}
        self.admission = self.open()
        self.token_id = self.add(SECRET)

    def open(self) -> Admission:
        return Admission(self.book, HOME, self.admit, version="0.5", is_reserved=lambda name: name == "worker-0")

    def admit(self, name: str, public_key: str) -> None:
        self.admitted[name] = public_key

    def add(self, secret: str, expires_s: float | None = None) -> str:
        token = make_token(secret, NOW_S, expires_s=expires_s)
        self.book.change(lambda book: book.with_token(token))
        return token.id

    def knock(
        self,
        key: str = "key-a",
        *,
        secret: str = SECRET,
        name: str = "desk",
        host: str = "10.0.0.5",
        now_s: float = NOW_S,
    ) -> Welcome | Refused:
        return self.admission.answer(Caller(key, None, host), knock_with(secret, name), now_s)

    def revoke(self, what: str, now_s: float = NOW_S) -> None:
        self.book.change(lambda book: book.with_revoked(what, now_s))


def knock_with(secret: str, name: str = "desk") -> Knock:
    return Knock(secret=secret, name=name, protocol_version=PROTOCOL_VERSION, version="0.5", host="desk.local")


def refusal(answer: Welcome | Refused) -> Refused:
    assert isinstance(answer, Refused)
    return answer


def name_in(answer: Welcome | Refused) -> str:
    assert isinstance(answer, Welcome), answer
    return answer.name


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_who_knows_the_secret_is_let_in(door: Door) -> None:
    assert door.knock() == replace(HOME, name="desk")
    assert door.admitted == {"desk": "key-a"}
    (worker,) = door.book.read().workers
    assert (worker.host, worker.token_id, worker.first_seen_s) == ("desk.local", door.token_id, NOW_S)


def test_names_are_for_one_key_each(door: Door) -> None:
    assert name_in(door.knock("key-a")) == "desk"
    assert name_in(door.knock("key-b")) == "desk-2"
    assert name_in(door.knock("key-b", name="other")) == "desk-2"
    assert name_in(door.knock("key-c", name="coordinator")) == "coordinator-2"
    assert name_in(door.knock("key-d", name="worker-0")) == "worker-0-2"


def test_a_coordinator_that_was_started_anew_knows_its_workers(door: Door) -> None:
    door.knock("key-b")
    door.knock("key-a")
    door.admission = door.open()
    assert name_in(door.knock("key-a")) == "desk-2"
    assert door.admitted["desk-2"] == "key-a"


@pytest.mark.parametrize(
    "wrong",
    ["", "x" * 32, SECRET[:-1], SECRET + "A", SECRET.swapcase(), "é" * 32],
    ids=["none", "another", "shorter", "longer", "in the other case", "not ASCII"],
)
def test_a_wrong_secret_is_refused(door: Door, wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        answer = refusal(door.knock(secret=wrong))
    assert answer.is_final
    assert "not known here" in answer.reason
    assert door.admitted == {}
    assert door.book.read().workers == ()
    assert "10.0.0.5" in caplog.text
    assert not wrong or wrong not in caplog.text


def test_an_expired_token_keeps_new_workers_out_but_not_those_it_let_in(door: Door) -> None:
    secret = make_secret()
    token_id = door.add(secret, expires_s=NOW_S + 60)
    assert name_in(door.knock("key-a", secret=secret)) == "desk"
    late = refusal(door.knock("key-b", secret=secret, now_s=NOW_S + 60))
    assert late.is_final
    assert late.reason == f"join token {token_id} expired on 2027-01-15 08:01 UTC: ask for a new join line"
    assert name_in(door.knock("key-a", secret=secret, now_s=NOW_S + 1e6)) == "desk"


def test_a_revoked_token_keeps_everybody_out(door: Door) -> None:
    door.knock("key-a")
    door.revoke(door.token_id)
    for key in ("key-a", "key-b"):
        answer = refusal(door.knock(key))
        assert answer.is_final
        assert f"join token {door.token_id} was revoked" in answer.reason
    other = make_secret()
    door.add(other)
    assert name_in(door.knock("key-a", secret=other)) == "desk"


def test_a_revoked_worker_stays_out_whatever_it_shows(door: Door) -> None:
    door.knock("key-a")
    door.revoke("desk")
    other = make_secret()
    door.add(other)
    for secret in (SECRET, other):
        answer = refusal(door.knock("key-a", secret=secret))
        assert answer.is_final
        assert "the key of this worker (desk) was revoked on 2027-01-15" in answer.reason
    assert name_in(door.knock("key-b")) == "desk"


def test_who_must_be_forgotten_is_said_once(door: Door) -> None:
    door.knock("key-a", name="desk")
    door.knock("key-b", name="shelf")
    assert door.admission.revoked_names() == ()
    BookFile(door.book._path.parent).change(lambda book: book.with_revoked("shelf", NOW_S))  # as another process does
    assert door.admission.revoked_names() == ("shelf",)
    assert door.admission.revoked_names() == ()
    door.revoke(door.token_id)
    assert door.admission.revoked_names() == ("desk",)


def test_a_name_that_another_key_has_now_is_not_forgotten(door: Door) -> None:
    door.knock("key-a")
    door.revoke("desk")
    assert name_in(door.knock("key-b")) == "desk"
    assert door.admission.revoked_names() == ()


@pytest.mark.parametrize("difference", [-1, 1])
def test_another_protocol_is_refused_with_both_versions(door: Door, difference: int) -> None:
    other = replace(knock_with(SECRET), protocol_version=PROTOCOL_VERSION + difference, version="9.9")
    answer = refusal(door.admission.answer(Caller("key-a", None), other, NOW_S))
    assert answer.is_final
    assert answer.reason == (
        f"the worker runs Butterfly 9.9 (protocol {PROTOCOL_VERSION + difference}), the coordinator 0.5 "
        f"(protocol {PROTOCOL_VERSION}): install the same version on both"
    )
    assert door.admitted == {}


@pytest.mark.parametrize("name", ["", "../../etc", "a b", "-x", "w\n", "w" * 64])
def test_what_is_no_name_is_refused(door: Door, name: str) -> None:
    answer = refusal(door.knock(name=name))
    assert "cannot be a worker's name" in answer.reason
    assert door.admitted == {}


# ---------------------------------------------------------------------------------------- guessing


def guess(door: Door, number: int, host: str = "10.6.6.6", now_s: float = NOW_S) -> None:
    for each in range(number):
        door.knock(f"key-of-a-guess-{each}", secret=make_secret(), host=host, now_s=now_s)


def test_after_some_wrong_secrets_not_even_the_right_one_is_looked_at(door: Door) -> None:
    guess(door, 5)
    answer = refusal(door.knock(host="10.6.6.6"))
    assert not answer.is_final
    assert door.knock(host="10.6.6.6", now_s=NOW_S + 0.99) == answer
    assert name_in(door.knock(host="10.6.6.6", now_s=NOW_S + 1.0)) == "desk"


def test_guesses_of_one_host_hold_up_nobody_else(door: Door) -> None:
    door.knock("key-inside", host="10.6.6.6")
    guess(door, 5)
    assert name_in(door.knock("key-inside", host="10.6.6.6")) == "desk"  # known before
    assert name_in(door.knock("key-new", host="10.0.0.5")) == "desk-2"


def test_one_network_of_ipv6_counts_as_one_host(door: Door) -> None:
    for each in range(5):
        guess(door, 1, host=f"2001:db8::{each + 1}")
    assert not refusal(door.knock(host="2001:db8::99")).is_final
    assert name_in(door.knock(host="2001:db8:1::99")) == "desk"


def test_a_clock_that_is_set_back_ends_the_pause(door: Door) -> None:
    guess(door, 5)
    assert name_in(door.knock(host="10.6.6.6", now_s=NOW_S - 3600)) == "desk"


def test_refusals_are_logged_rarely_and_with_nothing_of_the_strangers_that_breaks_a_line(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for each in range(200):
            rude = Knock(secret=make_secret(), name="\x1b[31m", protocol_version=1, version="\n", host="a\nb" * 1000)
            door.admission.answer(Caller(f"key-{each}", None, f"10.0.{each}.1"), rude, NOW_S)
    assert 0 < len(caplog.records) < 20
    assert not any({"\n", "\x1b"} & set(record.getMessage()) for record in caplog.records)
    assert max(len(record.getMessage()) for record in caplog.records) < 300


# -------------------------------------------------------------------------------- the book in trouble


def test_a_damaged_book_lets_nobody_in_and_tells_strangers_nothing(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    door.knock("key-a")
    path = door.book._path
    path.write_bytes(b"{")
    answer = refusal(door.knock("key-b"))
    assert not answer.is_final
    assert str(path) not in answer.reason
    assert f"{path} is damaged" in caplog.text
    assert door.admission.revoked_names() == ()


def test_a_book_that_cannot_be_written_keeps_out_only_who_is_new(
    door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other_token = make_secret()
    door.add(other_token)
    name = name_in(door.knock("key-a"))
    before = door.book.read()
    (tmp_path / "joined.json.new").mkdir()  # where a new book is written
    assert not refusal(door.knock("key-b")).is_final
    assert name_in(door.knock("key-a", name="another")) == name
    assert "cannot note that desk came back: cannot write" in caplog.text
    refusal(door.knock("key-a", secret=other_token))  # which would have to be noted
    assert door.book.read() == before
    (tmp_path / "joined.json.new").rmdir()
    assert name_in(door.knock("key-b")) == "desk-2"


def test_an_empty_book_lets_nobody_in(tmp_path: Path) -> None:
    door = Door(tmp_path)
    door.book.change(lambda book: Book())
    assert refusal(door.knock()).is_final
