"""What a coordinator and a worker keep on disk."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from butterfly.communication.identity import Book, BookFile, CoordinatorState, make_token, worker_keys
from butterfly.errors import ConfigError

NOW_S = 1_800_000_000.0


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_coordinator_that_starts_again_is_the_same_one(tmp_path: Path) -> None:
    first = CoordinatorState(tmp_path)
    secret = first.own_secret(NOW_S)
    first.remember_address("studio.local", 7700)
    again = CoordinatorState(tmp_path)
    assert again.keys == first.keys
    assert again.own_secret(NOW_S + 1e6) == secret is not None
    assert again.remembered_address() == ("studio.local", 7700)
    assert len(again.book.read().tokens) == 1


def test_only_the_owner_reads_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        state = CoordinatorState(tmp_path / "deep" / "state")
        state.own_secret(NOW_S)
        state.remember_address("h", 1)
        with worker_keys(tmp_path / "deep" / "state", state.keys.public_key, "desk"):
            pass
    finally:
        os.umask(before)
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files_below(tmp_path)} == {0o600}


def test_secrets_of_others_are_on_no_disk(tmp_path: Path) -> None:
    secret = CoordinatorState(tmp_path).new_secret(NOW_S, note="for Ada")
    assert not any(secret.encode() in path.read_bytes() for path in files_below(tmp_path))


def test_the_own_secret_is_made_anew_only_when_no_token_is_valid(tmp_path: Path) -> None:
    state = CoordinatorState(tmp_path)
    state.new_secret(NOW_S, expires_s=NOW_S + 60)
    assert state.own_secret(NOW_S) is None  # there is a way in, which cannot be shown
    own = state.own_secret(NOW_S + 61)
    assert own is not None
    other = state.new_secret(NOW_S + 61)
    token = state.book.read().token_of(own)
    assert token is not None
    state.book.change(lambda book: book.with_revoked(token.id, NOW_S + 62))
    assert state.own_secret(NOW_S + 63) is None
    last = state.book.read().token_of(other)
    assert last is not None
    state.book.change(lambda book: book.with_revoked(last.id, NOW_S + 64))
    assert state.own_secret(NOW_S + 65) not in (None, own, other)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("joined.json", lambda content: content[:-10]),
        ("joined.json", lambda content: b""),
        ("joined.json", lambda content: b'{"tokens": 1}'),
        ("keys.json", lambda content: content[:40]),
        ("keys.json", lambda content: content.replace(b'"secret_key": "', b'"secret_key": "?')),
        ("own-token.json", lambda content: b"\xff" + content),
    ],
)
def test_a_damaged_file_is_named_and_not_quoted(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    secret = CoordinatorState(tmp_path).own_secret(NOW_S)
    assert secret is not None
    path = tmp_path / "coordinator" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match="is damaged") as caught:
        CoordinatorState(tmp_path).own_secret(NOW_S)
    assert str(path) in str(caught.value)
    assert secret not in str(caught.value)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    CoordinatorState(tmp_path)
    (tmp_path / "coordinator" / "keys.json").chmod(0o644)
    with pytest.raises(ConfigError, match=r"chmod 600 .*keys\.json"):
        CoordinatorState(tmp_path)


def test_a_folder_that_others_may_change_is_refused(tmp_path: Path) -> None:
    CoordinatorState(tmp_path)
    (tmp_path / "coordinator").chmod(0o770)
    with pytest.raises(ConfigError, match=r"chmod 700 .*coordinator"):
        CoordinatorState(tmp_path)


def test_a_place_that_is_no_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        CoordinatorState(tmp_path / "file" / "state")


# -------------------------------------------------------------------------------------- two writers


ADD_TOKENS = """
import sys
from pathlib import Path
from butterfly.communication.identity import BookFile, make_token
folder, label = Path(sys.argv[1]), sys.argv[2]
for number in range(20):
    token = make_token(f"{label}-{number}", 0.0, note=label)
    BookFile(folder).change(lambda book: book.with_token(token))
"""


def add_tokens(file: BookFile, label: str, number: int) -> None:
    for each in range(number):
        token = make_token(f"{label}-{each}", NOW_S, note=label)
        file.change(partial(Book.with_token, token=token))


def test_writers_in_two_processes_lose_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ADD_TOKENS, str(tmp_path), "other"]) as other:
        add_tokens(BookFile(tmp_path), "ours", 20)
        assert other.wait(60) == 0
    notes = [token.note for token in BookFile(tmp_path).read().tokens]
    assert sorted(notes) == ["other"] * 20 + ["ours"] * 20


def test_threads_that_write_through_one_object_lose_nothing(tmp_path: Path) -> None:
    file = BookFile(tmp_path)
    threads = [threading.Thread(target=add_tokens, args=(file, label, 10)) for label in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read().tokens) == 40


def test_a_change_by_another_is_seen_at_once(tmp_path: Path) -> None:
    reading, writing = BookFile(tmp_path), BookFile(tmp_path)
    assert reading.read() == Book()
    for number in range(5):
        after = writing.change(partial(Book.with_token, token=make_token(f"s{number}", NOW_S)))
        assert reading.read() == after
    assert reading.read() is reading.read()  # not read again


def test_a_lock_that_is_kept_is_an_error_with_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from butterfly.communication.identity import book_file
    from butterfly.communication.identity.private_files import locked

    monkeypatch.setattr(book_file, "locked", lambda path: locked(path, timeout_s=0.05))
    with locked(tmp_path / "lock"), pytest.raises(ConfigError, match=r"kept .*lock locked for 0\.05 s"):
        BookFile(tmp_path).change(lambda book: book)


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    state = CoordinatorState(tmp_path)
    (tmp_path / "coordinator" / "joined.json.new").write_text("half of")
    state.new_secret(NOW_S)
    assert len(BookFile(tmp_path / "coordinator").read().tokens) == 1
    assert not (tmp_path / "coordinator" / "joined.json.new").exists()


# -------------------------------------------------------------------------------------- worker keys


def test_a_worker_has_the_same_keys_again_for_the_same_coordinator_and_name(tmp_path: Path) -> None:
    with worker_keys(tmp_path, "coordinator-a", "desk") as (name, keys):
        assert name == "desk"
    with worker_keys(tmp_path, "coordinator-a", "desk") as again:
        assert again == ("desk", keys)
    with worker_keys(tmp_path, "coordinator-b", "desk") as (_, other):
        assert other != keys
    with worker_keys(tmp_path, "coordinator-a", "shelf") as (_, other):
        assert other != keys


def test_two_workers_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    with worker_keys(tmp_path, "c", "desk") as first, worker_keys(tmp_path, "c", "desk") as second:
        assert (first[0], second[0]) == ("desk", "desk-2")
        assert first[1] != second[1]
    with worker_keys(tmp_path, "c", "desk") as first_again, worker_keys(tmp_path, "c", "desk") as second_again:
        assert (first_again, second_again) == (first, second)
