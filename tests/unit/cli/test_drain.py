"""`butterfly drain` against the real application of the API, over a cluster that is played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec
import pytest

from butterfly.api import ApiKeys, ApiServer, BoundPort, create_app
from butterfly.cli import drain as drain_module
from butterfly.cli.drain import refusal
from butterfly.cli.main import app
from butterfly.errors import ConfigError, InvalidRequestError, PeerTimeoutError, PlanError
from butterfly.specs import ClusterStatus, WorkerStatus
from tests.unit.api.doubles import ByteTokenizer, ScriptedEngine, served_model

ADMIN, ADA = "sk-admin-0123456789", "sk-ada-0123456789"
_LOOKS_BEFORE_IT_LEAVES = 3
TOO_LARGE = "the model does not fit: 70 MiB are missing"


class PlayedCluster(ScriptedEngine):
    """Two workers; one that is drained leaves after a few looks at the status."""

    def __init__(self) -> None:
        workers = tuple(WorkerStatus(name=f"worker-{number}", phase="ready") for number in range(2))
        cluster = ClusterStatus(phase="ready", epoch=1, model="tiny", workers=workers)
        super().__init__(ByteTokenizer(), cluster=cluster)
        self.refusal_to_drain = ""
        self.refuses_later = False  # the first wish comes while the cluster moves
        self.wishes: list[str] = []
        self._looks = 0

    async def drain(self, worker: str) -> None:
        known = [row.name for row in self.cluster.workers]
        if worker not in known:
            raise InvalidRequestError(f"no worker {worker} is there; there are: {', '.join(known)}", "worker")
        if self.refusal_to_drain and (self.wishes or not self.refuses_later):
            raise PlanError(self.refusal_to_drain)
        self.wishes.append(worker)
        if len(self.wishes) == 1:
            self.cluster = msgspec.structs.replace(self.cluster, phase="moving", detail=f"{worker} is to leave")

    def status(self) -> ClusterStatus:
        if self.wishes:
            self._looks += 1
            workers = self.cluster.workers
            if self._looks >= _LOOKS_BEFORE_IT_LEAVES and not self.refuses_later:
                workers = tuple(row for row in workers if row.name not in self.wishes)
            phase = "ready" if self._looks > 1 else "moving"
            self.cluster = msgspec.structs.replace(self.cluster, phase=phase, workers=workers)
        return self.cluster


@contextmanager
def serving(cluster: PlayedCluster, keys: ApiKeys | None = None) -> Iterator[str]:
    with ApiServer(
        create_app(cluster, served_model(cluster.tokenizer), operator=cluster, keys=keys), BoundPort("127.0.0.1", 0)
    ) as server:
        yield server.url


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUTTERFLY_API_KEY", raising=False)


@pytest.fixture
def cluster() -> PlayedCluster:
    return PlayedCluster()


def drain(*arguments: str) -> None:
    app(["drain", *arguments], standalone_mode=False)


def test_it_waits_until_the_worker_has_left(cluster: PlayedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(cluster) as url:
        drain("worker-1", "--url", url)
    assert set(cluster.wishes) == {"worker-1"}
    assert [row.name for row in cluster.cluster.workers] == ["worker-0"]
    assert capsys.readouterr().out == "worker-1 has left\n"


def test_or_does_not(cluster: PlayedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(cluster) as url:
        drain("worker-1", "--url", f"{url}/v1", "--no-wait")
    assert cluster.wishes == ["worker-1"]
    assert len(cluster.cluster.workers) == 2
    assert capsys.readouterr().out == "worker-1 is to leave\n"


def test_an_unknown_worker_is_told_with_those_that_there_are(cluster: PlayedCluster) -> None:
    with serving(cluster) as url, pytest.raises(ConfigError, match=r"no worker desk .* there are: worker-0, worker-1"):
        drain("desk", "--url", url)


def test_one_that_cannot_be_spared_stays(cluster: PlayedCluster) -> None:
    cluster.refusal_to_drain = TOO_LARGE
    with serving(cluster) as url, pytest.raises(PlanError, match=f"^{TOO_LARGE}$"):
        drain("worker-0", "--url", url)
    assert len(cluster.cluster.workers) == 2


def test_a_refusal_that_comes_later_is_heard(cluster: PlayedCluster) -> None:
    cluster.refusal_to_drain, cluster.refuses_later = TOO_LARGE, True
    with serving(cluster) as url, pytest.raises(PlanError, match=TOO_LARGE):
        drain("worker-0", "--url", url)
    assert cluster.wishes == ["worker-0"]


def test_it_takes_the_key_of_the_operator(cluster: PlayedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(cluster, ApiKeys({"admin": ADMIN, "ada": ADA})) as url:
        with pytest.raises(ConfigError, match="wants an API key: give --api-key or BUTTERFLY_API_KEY"):
            drain("worker-1", "--url", url)
        with pytest.raises(ConfigError, match="only the API key with the label admin may change the cluster"):
            drain("worker-1", "--url", url, "--api-key", ADA)
        assert cluster.wishes == []
        monkeypatch.setenv("BUTTERFLY_API_KEY", f"admin: {ADMIN}")
        drain("worker-1", "--url", url)
    assert set(cluster.wishes) == {"worker-1"}


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no Butterfly server answers at http://127\.0\.0\.1:1: "):
        drain("worker-0", "--url", "http://127.0.0.1:1")


def test_ctrl_c_ends_only_the_waiting(
    cluster: PlayedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(status: ClusterStatus, worker: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(drain_module, "find", interrupted)
    with serving(cluster) as url:
        assert app(["drain", "worker-1", "--url", url], standalone_mode=False) == 130
    assert cluster.wishes == ["worker-1"]
    assert capsys.readouterr().err == "not waited for any more: worker-1 leaves all the same\n"


def test_waiting_has_an_end(cluster: PlayedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_module, "_LONGEST_S", 0.0)
    with serving(cluster) as url, pytest.raises(PeerTimeoutError, match="worker-1 has not left within 0 s"):
        drain("worker-1", "--url", url)


def test_somebody_elses_answer_is_said_to_be_that() -> None:
    for content in (b"<html>", b"[]", b'{"error": "no"}'):
        answer = httpx.Response(502, content=content, request=httpx.Request("POST", "http://h/cluster/drain"))
        assert refusal(answer) == "http://h/cluster/drain answers 502 Bad Gateway, as no Butterfly server does"
