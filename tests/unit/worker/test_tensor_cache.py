"""The cache of tensors: its limit, what is held, partial files, full disks, dead and living neighbours."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from butterfly.blobs import FileDigests
from butterfly.errors import WorkerError
from butterfly.worker.tensors import TensorCache
from butterfly.worker.tensors.locking import locked, try_lock
from tests.support.tensor_files import digest_of
from tests.unit.worker.tensor_rig import cache_files

LIMIT_BYTES = 10_000
HOLDER = """
import sys
from pathlib import Path
from butterfly.blobs import FileDigests
from butterfly.worker.tensors import TensorCache
cache = TensorCache(Path(sys.argv[1]), 10_000, FileDigests())
cache.hold({sys.argv[2]: 4000})
partial = cache.open_partial(sys.argv[3], 1000, lambda: None)
partial.append(b"x" * 300)
print("ready", flush=True)
sys.stdin.read()
"""


def a_cache(folder: Path, limit_bytes: int = LIMIT_BYTES) -> TensorCache:
    return TensorCache(folder, limit_bytes, FileDigests())


def blob(number: int, num_bytes: int = 4000) -> tuple[str, bytes]:
    data = bytes([number]) * num_bytes
    return digest_of(data), data


def put(cache: TensorCache, data: bytes) -> str:
    """Hold and store one tensor, as a load would."""
    digest = digest_of(data)
    cache.hold({digest: len(data)})
    partial = cache.open_partial(digest, len(data), lambda: None)
    assert partial is not None
    partial.append(data)
    assert partial.complete()
    return digest


def nothing() -> None:
    pass


def test_what_was_put_is_found(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    digest, data = blob(1)
    assert cache.find(digest, len(data)) is None
    assert put(cache, data) == digest
    where = cache.find(digest, len(data))
    assert where is not None
    assert where.read(0, 10_000) == data
    assert cache.find(digest, len(data) + 1) is None, "of another size"


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    first, second = put(cache, blob(1)[1]), put(cache, blob(2)[1])
    for digest, when in ((first, 100), (second, 200)):
        os.utime(tmp_path / "tensors" / digest, (when, when))
    assert cache.find(first, 4000) is not None  # used just now
    third = put(cache, blob(3)[1])
    assert set(cache_files(tmp_path)) == {first, third}


def test_the_limit_holds_and_the_present_load_stays(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    for number in range(1, 30):
        put(cache, blob(number, 3000)[1])
        assert sum(cache_files(tmp_path).values()) <= LIMIT_BYTES
    digests = {blob(number, 3000)[0]: 3000 for number in range(40, 43)}
    cache.hold(digests)
    for number in range(40, 43):
        partial = cache.open_partial(blob(number, 3000)[0], 3000, nothing)
        assert partial is not None
        partial.append(blob(number, 3000)[1])
        assert partial.complete()
    assert set(digests) <= set(cache_files(tmp_path))
    assert sum(cache_files(tmp_path).values()) <= LIMIT_BYTES


def test_partial_files_count_and_go_too(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    cache.hold({blob(1)[0]: 4000})
    partial = cache.open_partial(blob(1)[0], 4000, nothing)
    assert partial is not None
    partial.append(bytes([1]) * 3999)
    partial.close()
    cache.hold({blob(2, 9000)[0]: 9000})
    assert cache_files(tmp_path) == {}


def test_more_than_the_limit_is_refused_with_figures(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    digest = put(cache, blob(1)[1])
    with pytest.raises(WorkerError, match=r"need 19\.5 KiB in the cache .*may hold 9\.8 KiB.*--cache-size"):
        cache.hold({blob(number)[0]: 4000 for number in range(2, 7)})
    assert digest in cache_files(tmp_path), "it would have been removed for nothing"


def test_a_neighbour_keeps_what_it_holds(tmp_path: Path) -> None:
    ours, theirs = a_cache(tmp_path), a_cache(tmp_path)
    held = put(theirs, blob(1, 6000)[1])
    with pytest.raises(WorkerError, match=r"other workers of this machine hold 5\.9 KiB"):
        ours.hold({blob(2, 6000)[0]: 6000})
    assert set(cache_files(tmp_path)) == {held}
    theirs.release()
    put(ours, blob(2, 6000)[1])
    assert set(cache_files(tmp_path)) == {blob(2, 6000)[0]}


def test_what_two_hold_is_counted_once(tmp_path: Path) -> None:
    ours, theirs = a_cache(tmp_path), a_cache(tmp_path)
    put(theirs, blob(1, 6000)[1])
    ours.hold({blob(1, 6000)[0]: 6000})
    theirs.release()
    assert set(cache_files(tmp_path)) == {blob(1, 6000)[0]}


def test_a_killed_neighbour_holds_nothing_and_leaves_its_part(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    held, began = blob(1)[0], digest_of(b"x" * 1000)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), held, began],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(WorkerError, match="other workers"):
            cache.hold({blob(2, 9000)[0]: 9000})
        assert cache.is_being_written(began)
        assert cache.open_partial(began, 1000, nothing) is None
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not cache.is_being_written(began)
    partial = cache.open_partial(began, 1000, nothing)
    assert partial is not None
    assert partial.done_bytes == partial.num_resumed_bytes == 300
    partial.append(b"x" * 700)
    assert partial.complete()
    cache.hold({blob(2, 9000)[0]: 9000})
    assert [path.name for path in (tmp_path / "tensors" / "in-use").iterdir()] == [cache._lease._path.name]


def test_wrong_bytes_never_get_in(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    digest, data = blob(1)
    cache.hold({digest: 4000})
    partial = cache.open_partial(digest, 4000, nothing)
    assert partial is not None
    partial.append(data[:-1] + b"?")
    assert partial.is_full
    assert not partial.complete()
    assert partial.done_bytes == 0
    assert cache.peek(digest) is None
    partial.append(data)
    assert partial.complete()
    assert cache.find(digest, 4000) is not None


def test_a_part_that_is_too_long_is_begun_anew(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    digest, data = blob(1)
    cache.hold({digest: 4000})
    (tmp_path / "tensors" / f"{digest}.part").write_bytes(data + b"more")
    partial = cache.open_partial(digest, 4000, nothing)
    assert partial is not None
    assert partial.done_bytes == 0
    partial.close()


def test_a_private_part_is_nobody_elses(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    digest, data = blob(1)
    cache.hold({digest: 4000})
    shared = cache.open_partial(digest, 4000, nothing)
    assert shared is not None
    abandoned = cache.open_partial(digest, 4000, nothing, private=True)
    assert abandoned is not None
    abandoned.append(data[:100])
    abandoned.close()
    assert len(cache_files(tmp_path)) == 1
    private = cache.open_partial(digest, 4000, nothing, private=True)
    assert private is not None
    private.append(data)
    assert private.complete()
    shared.append(data)
    assert shared.complete(), "both may be there first"
    assert set(cache_files(tmp_path)) == {digest}


def test_what_another_has_just_completed_is_not_begun_anew(tmp_path: Path) -> None:
    cache = a_cache(tmp_path)
    digest = put(cache, blob(1)[1])
    assert cache.open_partial(digest, 4000, nothing) is None
    assert not cache.is_being_written(digest)
    assert set(cache_files(tmp_path)) == {digest}


def test_too_little_room_on_the_disk_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=3000))
    message = r"need 3\.9 KiB more in .*tensors, where 2\.9 KiB can be written: make room.*--cache-dir"
    with pytest.raises(WorkerError, match=message):
        a_cache(tmp_path).hold({blob(1)[0]: 4000})
    assert cache_files(tmp_path) == {}


def test_what_is_idle_makes_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = a_cache(tmp_path)
    put(cache, blob(1)[1])
    usage = shutil.disk_usage(tmp_path)

    def free_beside_the_cache(folder: Path) -> object:
        return usage._replace(free=6000 - sum(cache_files(tmp_path).values()))

    monkeypatch.setattr(shutil, "disk_usage", free_beside_the_cache)
    cache.hold({blob(2)[0]: 4000})
    assert cache_files(tmp_path) == {}


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """A limit for every file that this process writes, which the system enforces; taken back at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_while_we_write_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = a_cache(tmp_path)
    digest, data = blob(1)
    cache.hold({digest: 4000})
    partial = cache.open_partial(digest, 4000, nothing)
    assert partial is not None
    partial.append(data[:1000])

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(WorkerError, match=r"need 2\.9 KiB more in .*--cache-dir"):
            partial.append(data[1000:])
    partial.append(data[1000:])
    assert partial.complete()


def test_a_limit_for_files_is_said(tmp_path: Path, small_files: Callable[[int], None]) -> None:
    cache = a_cache(tmp_path)
    digest, data = blob(1)
    cache.hold({digest: 4000})
    partial = cache.open_partial(digest, 4000, nothing)
    assert partial is not None
    small_files(1000)
    with pytest.raises(WorkerError, match=r"allows no file in .*ulimit -f"):
        partial.append(data)
    small_files(resource.RLIM_INFINITY)
    partial.close()
    again = cache.open_partial(digest, 4000, nothing)
    assert again is not None
    assert again.done_bytes == 1000
    again.append(data[1000:])
    assert again.complete()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkerError, match=r"cannot write to the cache .*file/tensors: .*--cache-dir"):
        a_cache(tmp_path / "file").hold({blob(1)[0]: 4000})
    assert a_cache(tmp_path / "file").find(blob(1)[0], 4000) is None


def test_a_lock_that_is_never_given_back_is_named(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")
    assert held is not None
    with pytest.raises(TimeoutError, match="lock"), locked(tmp_path / "lock", 0.05):
        pytest.fail("two hold one lock")
    os.close(held)
    with locked(tmp_path / "lock", 0.05):
        assert try_lock(tmp_path / "lock") is None


def test_only_digests_are_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    cache = a_cache(tmp_path)
    cache.hold({})
    assert cache.peek("../secret") is None
    assert cache.peek("lock") is None
