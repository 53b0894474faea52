"""Digests of ranges: right, computed once, forgotten when the file changes."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from butterfly.blobs import FileDigests, FileRange, answer_fetch, is_digest
from butterfly.calls import BlobPart, FetchBlob, Refused
from butterfly.errors import ModelFormatError
from tests.support.tensor_files import digest_of

DATA = bytes(range(256)) * 20_000  # 5 MB


@pytest.fixture
def where(tmp_path: Path) -> FileRange:
    path = tmp_path / "model"
    path.write_bytes(DATA)
    return FileRange(str(path), 1000, 3_000_000)


def read_count(digests: FileDigests, where: FileRange) -> int:
    """Ask for the digest and return how many MiB were read for it."""
    steps: list[None] = []
    assert digests.digest(where, lambda: steps.append(None)) == digest_of(DATA[1000:3_001_000])
    return len(steps)


def test_a_digest_is_computed_once(where: FileRange, tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "memory" / "digests.jsonl")
    assert digests.remembered(where) is None
    assert read_count(digests, where) == 3
    assert read_count(digests, where) == 0
    again = FileDigests(tmp_path / "memory" / "digests.jsonl")
    assert again.remembered(where) == digest_of(DATA[1000:3_001_000])
    assert read_count(again, where) == 0
    assert again.remembered(where._replace(offset=1001)) is None


def test_a_changed_file_is_read_again(where: FileRange, tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "digests.jsonl")
    read_count(digests, where)
    other = DATA[::-1]
    Path(where.path).write_bytes(other)
    os.utime(where.path, ns=(1, 1))
    assert digests.remembered(where) is None
    assert digests.digest(where) == digest_of(other[1000:3_001_000])


@pytest.mark.parametrize("damage", [b"", b"garbage\n", b'["/x",1,2,3]\n', b"\xff\xfe", b'{"a":1}\n[[[['])
def test_a_damaged_memory_costs_time_only(
    where: FileRange, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    memory = tmp_path / "digests.jsonl"
    read_count(FileDigests(memory), where)
    memory.write_bytes(memory.read_bytes() + damage)
    with caplog.at_level(logging.WARNING):
        assert read_count(FileDigests(memory), where) == 0
    assert (str(memory) in caplog.text) == bool(damage)
    memory.write_bytes(damage + memory.read_bytes()[:20])
    assert read_count(FileDigests(memory), where) == 3


def test_a_memory_that_cannot_be_written_is_done_without(
    where: FileRange, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    digests = FileDigests(tmp_path / "file" / "digests.jsonl")
    with caplog.at_level(logging.WARNING):
        assert read_count(digests, where) == 3
        digests.digest(where._replace(num_bytes=5))
    assert read_count(digests, where) == 0
    assert caplog.text.count("cannot keep digests") == 1


def test_what_cannot_be_read_names_the_file(where: FileRange) -> None:
    digests = FileDigests()
    for wrong in (where._replace(path="/nowhere/model"), where._replace(num_bytes=len(DATA))):
        with pytest.raises(ModelFormatError, match="model"):
            digests.digest(wrong)
        assert digests.remembered(wrong) is None


def test_many_threads_may_ask(where: FileRange, tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "digests.jsonl")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(digests.digest(where))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [digest_of(DATA[1000:3_001_000])] * 4


def test_parts_of_a_range_and_nothing_else_are_given(where: FileRange) -> None:
    fetch = FetchBlob(digest="ab" * 32, start=0, num_bytes=0)
    for start, num_bytes in ((0, 10), (2_999_990, 100), (3_000_000, 5), (9_000_000, 5), (0, 4_000_000)):
        answer = answer_fetch(where, FetchBlob(digest=fetch.digest, start=start, num_bytes=num_bytes))
        assert isinstance(answer, tuple)
        part, data = answer
        assert part == BlobPart(total_bytes=3_000_000)
        assert data == DATA[1000:3_001_000][start : start + num_bytes]
    for start, num_bytes in ((-1, 10), (0, -1)):
        assert isinstance(
            answer_fetch(where, FetchBlob(digest=fetch.digest, start=start, num_bytes=num_bytes)), Refused
        )
    assert isinstance(answer_fetch(None, fetch), Refused)


def test_a_file_that_went_away_is_a_refusal_without_its_path(where: FileRange) -> None:
    fetch = FetchBlob(digest="ab" * 32, start=0, num_bytes=3_000_000)
    os.truncate(where.path, 2000)
    shorter = answer_fetch(where, fetch)
    assert isinstance(shorter, Refused)
    os.unlink(where.path)
    gone = answer_fetch(where, fetch)
    assert isinstance(gone, Refused)
    assert where.path not in gone.reason + shorter.reason


def test_what_looks_like_a_digest() -> None:
    assert is_digest("0a" * 32)
    assert not any(map(is_digest, ("", "0a" * 31, "0A" * 32, "0a" * 32 + "\n", "../" * 21 + "x")))
