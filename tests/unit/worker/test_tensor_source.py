"""Where a worker's tensors come from: real sockets, several MB, and sources that fail in every way."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from butterfly.calls import Answer, BlobPart, Call, DescribeTensors, FetchBlob, Refused
from butterfly.communication import Buffer, Caller, KeyPair
from butterfly.errors import PeerTimeoutError, ProtocolError, WorkerError
from butterfly.messages import PeerAddress
from butterfly.specs import TensorEntry
from tests.support.tcp_proxy import TcpProxy
from tests.support.tensor_files import content, digest_of, stored_model
from tests.unit.worker.tensor_rig import SIZES, TOTAL_BYTES, Cluster, Meter, cache_files, needs_of


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with closing(Cluster(tmp_path)) as cluster:
        yield cluster


def through(proxy: TcpProxy, address: PeerAddress) -> PeerAddress:
    return replace(address, endpoint=f"tcp://127.0.0.1:{proxy.port}")


def port_of(address: PeerAddress) -> int:
    return int(address.endpoint.rpartition(":")[2])


def test_tensors_are_fetched_once(cluster: Cluster) -> None:
    load, meter = cluster.load(), Meter()
    cluster.check(cluster.worker("first").locate(*needs_of(load), meter), load)
    assert meter.steps[-1] == (TOTAL_BYTES, TOTAL_BYTES)
    assert meter.steps == sorted(meter.steps)
    assert cluster.fetched_bytes("home") == TOTAL_BYTES
    again = Meter()
    cluster.check(cluster.worker("another process", cache="first").locate(*needs_of(load), again), load)
    assert again.steps[-1] == (TOTAL_BYTES, TOTAL_BYTES)
    assert cluster.fetched_bytes("home") == TOTAL_BYTES


def test_without_sources_entries_are_used_as_they_are(cluster: Cluster, tmp_path: Path) -> None:
    load = replace(cluster.load(), sources=())
    assert cluster.worker("worker").locate(*needs_of(load), Meter()) == load.tensors
    assert not (tmp_path / "worker").exists()


def test_generated_tensors_stay(cluster: Cluster) -> None:
    generated = TensorEntry(name="layers.3.q", storage="F32", shape=(4, 4), num_bytes=64, seed=5)
    load = cluster.load(names=["output_norm"])
    located = cluster.worker("worker").locate(*needs_of(replace(load, tensors=(generated, *load.tensors))), Meter())
    assert located[0] == generated
    cluster.check(located[1:], load)
    only = replace(load, tensors=(generated,))
    assert cluster.worker("worker").locate(*needs_of(only), Meter()) == (generated,)


def test_the_same_file_on_this_machine_is_used(cluster: Cluster, tmp_path: Path) -> None:
    load = cluster.load(here=True)
    assert cluster.worker("worker").locate(*needs_of(load), Meter()) == load.tensors
    assert cluster.fetched_bytes("home") == 0
    assert not (tmp_path / "worker" / "tensors").exists()


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_of_the_user_is_used(cluster: Cluster, tmp_path: Path, is_folder: bool) -> None:
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "model"
    mine.write_bytes((tmp_path / "home" / "model").read_bytes())
    load = cluster.load()
    worker = cluster.worker("worker", model_file=mine.parent if is_folder else mine)
    located = worker.locate(*needs_of(load), Meter())
    cluster.check(located, load)
    assert {entry.file for entry in located} == {str(mine)}
    assert cluster.fetched_bytes("home") == 0


def test_another_version_of_the_file_is_not_used(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    stored_model(tmp_path / "mine" / "model", SIZES, seed=1)
    load = cluster.load()
    worker = cluster.worker("worker", model_file=tmp_path / "mine")
    cluster.check(worker.locate(*needs_of(load), Meter()), load)
    assert cluster.fetched_bytes("home") == TOTAL_BYTES


def test_peers_are_asked_before_the_coordinator(cluster: Cluster) -> None:
    some = cluster.load(names=["embedding", "output_norm"])
    peer = cluster.worker("peer")
    peer.locate(*needs_of(some), Meter())
    cluster.asked["home"].clear()
    load = cluster.load(cluster.serve("peer", peer.answer).address)
    cluster.check(cluster.worker("worker").locate(*needs_of(load), Meter()), load)
    assert cluster.fetched_bytes("home") == TOTAL_BYTES - SIZES["embedding"] - SIZES["output_norm"]


def test_a_peer_gives_on_what_it_has_from_a_file(cluster: Cluster) -> None:
    peer = cluster.worker("peer")
    peer.locate(*needs_of(cluster.load(here=True)), Meter())
    load = cluster.load(cluster.serve("peer", peer.answer).address)
    cluster.check(cluster.worker("worker").locate(*needs_of(load), Meter()), load)
    assert cluster.fetched_bytes("home") == 0


def test_a_peer_gives_nothing_but_tensors(cluster: Cluster) -> None:
    peer = cluster.worker("peer")
    peer.locate(*needs_of(cluster.load()), Meter())
    caller = Caller("key", "worker")
    for digest in ("../digests.jsonl", "lock", digest_of(b"another")):
        assert isinstance(peer.answer(caller, FetchBlob(digest=digest, start=0, num_bytes=9)), Refused)
    assert isinstance(peer.answer(caller, DescribeTensors(names=("embedding",))), Refused)


def test_wrong_bytes_from_a_peer_are_noticed(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    def lie(caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
        answer = cluster.shelf.answer(call)
        if isinstance(answer, tuple) and isinstance(call, FetchBlob) and call.start:
            return answer[0], bytes(len(answer[1]))
        return answer

    load = cluster.load(cluster.serve("liar", lie).address)
    with caplog.at_level(logging.WARNING):
        cluster.check(cluster.worker("worker").locate(*needs_of(load), Meter()), load)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no more tensors from liar: liar gave wrong bytes as tensor embedding" in line


def test_the_one_who_resumes_is_not_blamed_for_the_beginning(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """One peer gives a wrong first part and then nothing more; the rest comes from another, honest one."""

    def lie_and_hang_up(caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
        if isinstance(call, FetchBlob) and call.start == 0 and call.num_bytes == 1 << 20:
            return BlobPart(total_bytes=SIZES["embedding"]), bytes(1 << 20)
        return Refused(reason="had enough")

    honest = cluster.worker("honest")
    load = cluster.load(names=["embedding"])
    honest.locate(*needs_of(load), Meter())
    cluster.asked["home"].clear()
    peers = cluster.serve("liar", lie_and_hang_up).address, cluster.serve("honest", honest.answer).address
    load = cluster.load(*peers, names=["embedding"])
    with caplog.at_level(logging.WARNING):
        cluster.check(cluster.worker("worker").locate(*needs_of(load), Meter()), load)
    assert cluster.fetched_bytes("home") == 0
    assert "honest" not in caplog.text


@pytest.mark.parametrize("fault", ["refuses", "is a stranger's", "has another key", "is gone", "is slow", "has less"])
def test_a_peer_that_fails_is_left_out(cluster: Cluster, fault: str) -> None:
    released = threading.Event()

    def answer(caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
        if fault == "is slow":
            released.wait(10)
        if fault == "has less":
            return BlobPart(total_bytes=5), b"12345"
        return Refused(reason="no room for you")

    service = cluster.serve("peer", answer)
    worker = cluster.worker("worker")
    address = service.address
    if fault == "is a stranger's":
        cluster.transports["peer"].expel("worker")
    elif fault == "has another key":
        address = replace(address, public_key=KeyPair.generate().public_key)
    elif fault == "is gone":
        service.close()
    load = cluster.load(address)
    cluster.check(worker.locate(*needs_of(load), Meter()), load)
    released.set()
    assert cluster.fetched_bytes("home") == TOTAL_BYTES


def test_a_cut_connection_is_resumed(cluster: Cluster) -> None:
    with TcpProxy(port_of(cluster.home.address), cut_after_bytes=2_500_000) as proxy:
        load = cluster.load(home=through(proxy, cluster.home.address))
        cluster.check(cluster.worker("worker").locate(*needs_of(load), Meter()), load)
        assert proxy.num_cuts == 1
    under_way_bytes = 8 << 20
    assert cluster.fetched_bytes("home") < TOTAL_BYTES + under_way_bytes
    asked = [call for call in cluster.asked["home"] if isinstance(call, FetchBlob)]
    assert len({(call.digest, call.start) for call in asked if call.start == 0}) == len(
        {digest_of(content(entry)) for entry in cluster.model.tensors.values()}
    )


def test_an_abandoned_fetch_is_resumed_by_another_process(cluster: Cluster, tmp_path: Path) -> None:
    class Abandoned(Exception):
        pass

    def abandon(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > 2 << 20:
            raise Abandoned

    load = cluster.load()
    with pytest.raises(Abandoned):
        cluster.worker("worker").locate(*needs_of(load), Meter(abandon))
    assert sum(cache_files(tmp_path / "worker").values()) > 2 << 20
    cluster.asked["home"].clear()
    meter = Meter()
    cluster.check(cluster.worker("again", cache="worker").locate(*needs_of(load), meter), load)
    assert cluster.fetched_bytes("home") <= TOTAL_BYTES - (2 << 20)
    assert set(map(len, cache_files(tmp_path / "worker"))) == {64}, "a partial file is left"


def test_wrong_bytes_from_everybody_are_an_error(cluster: Cluster) -> None:
    """The file changed under the coordinator after its digests were computed."""
    load = cluster.load(names=["layers.0.q"])
    cluster.worker("other").locate(*needs_of(load), Meter())
    path = cluster.folder / "home" / "model"
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))
    with pytest.raises(WorkerError, match=r"layers\.0\.q.*home gave wrong bytes"):
        cluster.worker("worker").locate(*needs_of(load), Meter())


def test_a_tensor_that_nobody_has_is_named(cluster: Cluster) -> None:
    load = cluster.load()
    strange = replace(load.tensors[0], name="layers.9.q")
    with pytest.raises(WorkerError, match=r"home does not tell.*layers\.9\.q"):
        cluster.worker("worker").locate(*needs_of(replace(load, tensors=(strange,))), Meter())


def test_a_coordinator_that_does_not_answer_is_named(cluster: Cluster) -> None:
    cluster.home.close()
    with pytest.raises(PeerTimeoutError, match="home") as caught:
        cluster.worker("worker").locate(*needs_of(cluster.load()), Meter())
    assert caught.value.peer == "home"


def test_a_coordinator_with_bad_manners_is_named(cluster: Cluster) -> None:
    bad = cluster.serve("bad", lambda caller, call: BlobPart(total_bytes=1))
    with pytest.raises(ProtocolError, match="bad"):
        cluster.worker("worker").locate(*needs_of(cluster.load(home=bad.address)), Meter())


def test_progress_is_heard_while_nothing_comes(cluster: Cluster) -> None:
    """And may end the wait, long before the deadline."""

    class Abandoned(Exception):
        pass

    def abandon(done_bytes: int, total_bytes: int) -> None:
        if len(meter.steps) > 3:
            raise Abandoned

    cluster.home.close()
    meter = Meter(abandon)
    with pytest.raises(Abandoned):
        cluster.worker("worker").locate(*needs_of(cluster.load()), meter)
    assert meter.steps[-1] == (0, TOTAL_BYTES)


def test_two_workers_of_a_machine_fetch_into_one_cache(cluster: Cluster, tmp_path: Path) -> None:
    load = cluster.load()
    workers = [cluster.worker(f"worker-{number}", cache="shared") for number in range(3)]
    located: list[tuple[TensorEntry, ...]] = []
    threads = [threading.Thread(target=lambda w=w: located.append(w.locate(*needs_of(load), Meter()))) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(located) == 3
    for tensors in located:
        cluster.check(tensors, load)
    assert set(map(len, cache_files(tmp_path / "shared"))) == {64}
    assert cluster.fetched_bytes("home") < 2 * TOTAL_BYTES


def test_another_process_that_does_not_get_on_holds_nobody_up(cluster: Cluster, tmp_path: Path) -> None:
    """A stopped process keeps its locks."""
    digest = digest_of(content(cluster.model.tensors["embedding"]))
    load = cluster.load()
    stopped, worker = cluster.worker("stopped", cache="shared"), cluster.worker("worker", cache="shared")
    (tmp_path / "shared" / "tensors").mkdir(parents=True)
    partial = stopped._cache.open_partial(digest, SIZES["embedding"], lambda: None)
    assert partial is not None
    partial.append(b"x" * 1000)
    cluster.check(worker.locate(*needs_of(load), Meter()), load)
    partial.close()
    assert {f"{digest}.part"} == {name for name in cache_files(tmp_path / "shared") if len(name) > 64}


def test_nothing_is_readable_on_the_way(cluster: Cluster) -> None:
    load = cluster.load(names=["embedding"])
    with TcpProxy(port_of(cluster.home.address)) as proxy:
        located = cluster.worker("worker").locate(load.tensors, (through(proxy, cluster.home.address),), Meter())
    cluster.check(located, load)
    plain, captured = content(located[0]), bytes(proxy.from_target)
    assert len(captured) > len(plain)
    assert not any(plain[start : start + 16] in captured for start in range(0, len(plain), 50_000))
    assert b"embedding" not in captured + bytes(proxy.to_target)


def test_a_folder_that_cannot_be_written_is_named(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "worker").write_text("a file is in the way")
    with pytest.raises(WorkerError, match=r"cannot write to the cache .*worker.*--cache-dir"):
        cluster.worker("worker").locate(*needs_of(cluster.load()), Meter())


def test_a_cache_that_is_too_small_says_so_before_fetching(cluster: Cluster) -> None:
    with pytest.raises(WorkerError, match=r"need 6\.3 MiB.*may hold 4\.0 MiB.*--cache-size"):
        cluster.worker("worker", limit_bytes=4 << 20).locate(*needs_of(cluster.load()), Meter())
    assert cluster.fetched_bytes("home") == 0


def test_a_damaged_file_of_the_cache_is_fetched_again(cluster: Cluster, tmp_path: Path) -> None:
    load = cluster.load()
    cluster.worker("worker").locate(*needs_of(load), Meter())
    digest = digest_of(content(cluster.model.tensors["layers.0.k"]))
    path = tmp_path / "worker" / "tensors" / digest
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(1, 1))
    cluster.asked["home"].clear()
    cluster.check(cluster.worker("again", cache="worker").locate(*needs_of(load), Meter()), load)
    assert cluster.fetched_bytes("home") == SIZES["layers.0.k"]
