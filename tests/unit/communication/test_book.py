"""Tokens and workers as plain values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from butterfly.communication.identity import Book, make_token
from butterfly.communication.identity.names import MAX_NAME_CHARACTERS, is_name, name_from, numbered
from butterfly.errors import ConfigError

NOW_S = 1_800_000_000.0


def anybody(name: str) -> bool:
    return False


def book_with(*secrets: str) -> Book:
    book = Book()
    for number, secret in enumerate(secrets):
        book = book.with_token(replace(make_token(secret, NOW_S), id=f"t{number}"))
    return book


def welcomed(book: Book, key: str, wanted: str, token_id: str = "t0") -> Book:
    return book.with_welcomed(key, book.name_for(key, wanted, anybody), token_id, "host", NOW_S)


def test_a_token_is_found_by_its_secret_which_is_not_kept() -> None:
    book = book_with("one", "two")
    found = book.token_of("two")
    assert found is not None
    assert found.id == "t1"
    assert book.token_of("three") is None
    assert "two" not in repr(book)


def test_a_token_expires() -> None:
    token = make_token("one", NOW_S, expires_s=NOW_S + 60)
    assert token.is_valid(NOW_S + 59.9)
    assert not token.is_valid(NOW_S + 60)
    assert make_token("one", NOW_S).is_valid(NOW_S * 2)


def test_the_same_key_keeps_its_name_and_others_get_a_number() -> None:
    book = welcomed(book_with("one"), "key-a", "desk")
    book = welcomed(book, "key-b", "desk")
    book = welcomed(book, "key-c", "desk")
    assert [worker.name for worker in book.workers] == ["desk", "desk-2", "desk-3"]
    assert book.name_for("key-b", "another", anybody) == "desk-2"
    assert book.name_for("key-d", "worker-0", lambda name: name == "worker-0") == "worker-0-2"


def test_seeing_a_worker_again_is_noted() -> None:
    book = welcomed(book_with("one"), "key-a", "desk")
    again = book.with_welcomed("key-a", "desk", "t0", "elsewhere", NOW_S + 5)
    (worker,) = again.workers
    assert (worker.first_seen_s, worker.last_seen_s, worker.host) == (NOW_S, NOW_S + 5, "elsewhere")
    assert again.tokens[0].num_uses == 2


def test_revoking_a_token_takes_its_workers_with_it() -> None:
    book = welcomed(welcomed(book_with("one", "two"), "key-a", "desk", "t0"), "key-b", "shelf", "t1")
    revoked = book.with_revoked("t0", NOW_S)
    assert [revoked.is_out(worker) for worker in revoked.workers] == [True, False]
    assert revoked.name_for("key-c", "desk", anybody) == "desk"  # nobody has it any more
    assert revoked.with_revoked("t0", NOW_S + 1) == revoked
    back = welcomed(revoked, "key-a", "desk", "t1")  # by another token it may come back
    assert not any(back.is_out(worker) for worker in back.workers)


def test_revoking_one_worker_leaves_its_token() -> None:
    book = welcomed(welcomed(book_with("one"), "key-a", "desk"), "key-b", "shelf").with_revoked("desk", NOW_S)
    assert [book.is_out(worker) for worker in book.workers] == [True, False]
    assert book.tokens[0].is_valid(NOW_S)


def test_what_is_not_there_cannot_be_revoked() -> None:
    with pytest.raises(ConfigError, match="no token and no worker 'nobody'"):
        book_with("one").with_revoked("nobody", NOW_S)


def test_what_is_a_token_and_a_worker_is_asked_back() -> None:
    with pytest.raises(ConfigError, match="is a token and also a worker"):
        welcomed(book_with("one"), "key-a", "t0").with_revoked("t0", NOW_S)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("welcome"), st.sampled_from("abcdef"), st.sampled_from(["w", "w-2", "x"]), st.integers(0, 2)),
        st.tuples(st.just("revoke"), st.sampled_from(["t0", "t1", "t2", "w", "w-2", "w-3", "x"])),
    ),
    max_size=40,
)


@given(steps)
def test_names_are_for_one_and_kept_and_the_revoked_stay_out(changes: list[tuple[object, ...]]) -> None:
    book = book_with("one", "two", "three")
    for change in changes:
        before = book
        if change[0] == "welcome":
            _, key, wanted, number = change
            token_id = f"t{number}"
            known = before.worker_of(str(key))
            if (known and known.revoked_s is not None) or before.with_revoked(token_id, NOW_S) == before:
                continue  # who decides about knocks would not let it in
            book = welcomed(before, str(key), str(wanted), token_id)
            if known and not before.is_out(known):
                after = book.worker_of(str(key))
                assert after is not None
                assert after.name == known.name
        elif any(change[1] in (worker.name, worker.token_id) for worker in before.workers):
            book = before.with_revoked(str(change[1]), NOW_S)
        inside = [worker.name for worker in book.workers if not book.is_out(worker)]
        assert len(inside) == len(set(inside))
        alone_s = {worker.public_key for worker in before.workers if worker.revoked_s is not None}
        assert alone_s <= {worker.public_key for worker in book.workers if worker.revoked_s is not None}


def test_what_is_kept_has_a_bound_but_never_loses_the_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("butterfly.communication.identity.book._MAX_WORKERS", 3)
    book = welcomed(book_with("one"), "key-0", "w").with_revoked("w", NOW_S)
    for number in range(1, 6):
        book = book.with_welcomed(f"key-{number}", f"w{number}", "t0", "host", NOW_S + number)
    assert [worker.public_key for worker in book.workers] == ["key-0", "key-4", "key-5"]


@given(st.text(max_size=100))
def test_any_text_gives_a_name(text: str) -> None:
    assert is_name(name_from(text))
    if is_name(text) and text.strip("-._") == text:
        assert name_from(text) == text


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True), st.integers(1, 10**6))
def test_a_numbered_name_is_a_name(name: str, number: int) -> None:
    assert is_name(name)
    assert is_name(numbered(name, number))


@pytest.mark.parametrize("name", ["", ".", "..", "-w", "a b", "a/b", "é", "a\n", "w" * (MAX_NAME_CHARACTERS + 1)])
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)
