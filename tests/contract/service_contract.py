"""What every kind of service promises: each function here checks one promise on any implementation."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from msgspec.structs import replace

from butterfly.calls import Answer, BlobPart, Call, DescribeTensors, FetchBlob, Knock, Refused, TensorDigests, Welcome
from butterfly.communication import Buffer, Caller, Service, ServiceClient, Services, Transport
from butterfly.communication.services import MAX_CALL_BYTES, MAX_PART_BYTES
from butterfly.errors import CommunicationError, ConfigError, PeerTimeoutError, ProtocolError

PATIENCE_S = 10.0  # longer than anything here takes; reached only when a promise is broken

KNOCK = Knock(secret="a secret", name="node", protocol_version=1, version="1")
DIGEST = "5e" * 32
BLOB = random.Random(3).randbytes(5 << 20)


class ServingTransport(Transport, Services, Protocol):
    pass


class Network(Protocol):
    """One world of transports that can reach one another."""

    def transport(self, name: str) -> ServingTransport: ...


class Clerk:
    """A handler that answers well, and remembers who asked what."""

    def __init__(self) -> None:
        self.asked: list[tuple[Caller, Call]] = []

    def __call__(self, caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
        self.asked.append((caller, call))
        if isinstance(call, Knock):
            return Welcome(name=call.name, inbox_port=1, inbox_name="home", encrypt=True)
        if isinstance(call, DescribeTensors):
            return TensorDigests(digests=(DIGEST,) * len(call.names))
        return BlobPart(total_bytes=len(BLOB)), BLOB[call.start : call.start + call.num_bytes]


def opened(
    network: Network, handler: Callable[[Caller, Call], Answer | tuple[Answer, Buffer]]
) -> tuple[Service, ServiceClient]:
    """Return a service of "home" and an admitted client of "worker"."""
    home, worker = network.transport("home"), network.transport("worker")
    home.admit("worker", worker.public_key)
    service = home.open_service(handler)
    return service, worker.connect_service(service.address)


def check_calls_are_answered(network: Network) -> None:
    clerk = Clerk()
    _, client = opened(network, clerk)
    assert client.call(DescribeTensors(names=("a", "b")), PATIENCE_S) == (
        TensorDigests(digests=(DIGEST, DIGEST)),
        None,
    )
    answer, payload = client.call(FetchBlob(digest=DIGEST, start=7, num_bytes=1000), PATIENCE_S)
    assert answer == BlobPart(total_bytes=len(BLOB))
    assert payload is not None
    assert bytes(payload) == BLOB[7:1007]
    assert {caller.name for caller, _ in clerk.asked} == {"worker"}


def check_a_part_beyond_the_end_is_short(network: Network) -> None:
    _, client = opened(network, Clerk())
    for start, length in ((len(BLOB) - 3, 3), (len(BLOB), 0), (len(BLOB) + 9, 0)):
        _, payload = client.call(FetchBlob(digest=DIGEST, start=start, num_bytes=10), PATIENCE_S)
        assert payload is not None
        assert payload.nbytes == length


def check_a_stranger_may_only_knock(network: Network) -> None:
    clerk = Clerk()
    home, stranger = network.transport("home"), network.transport("worker")
    service = home.open_service(clerk)
    client = stranger.connect_service(service.address)
    for refused in (DescribeTensors(names=("a",)), FetchBlob(digest=DIGEST, start=0, num_bytes=1)):
        answer, payload = client.call(refused, PATIENCE_S)
        assert isinstance(answer, Refused)
        assert "not admitted" in answer.reason
        assert payload is None
    assert clerk.asked == []
    assert isinstance(client.call(KNOCK, PATIENCE_S)[0], Welcome)
    ((caller, call),) = clerk.asked
    assert (caller.public_key, caller.name, call) == (stranger.public_key, None, KNOCK)


def check_admission_and_expulsion_count_at_once(network: Network) -> None:
    home, worker = network.transport("home"), network.transport("worker")
    service = home.open_service(Clerk())
    client = worker.connect_service(service.address)
    describe = DescribeTensors(names=("a",))
    assert isinstance(client.call(describe, PATIENCE_S)[0], Refused)
    home.admit("worker", worker.public_key)
    assert isinstance(client.call(describe, PATIENCE_S)[0], TensorDigests)
    home.expel("worker")
    assert isinstance(client.call(describe, PATIENCE_S)[0], Refused)


def check_a_handler_may_fail(network: Network) -> None:
    def fail(caller: Caller, call: Call) -> Answer:
        raise ConfigError("the file is gone")

    _, client = opened(network, fail)
    for _ in range(3):
        assert client.call(KNOCK, PATIENCE_S) == (Refused(reason="the file is gone"), None)


def check_answers_come_in_the_order_of_the_calls(network: Network) -> None:
    _, client = opened(network, Clerk())
    starts = range(0, len(BLOB), 100_000)
    calls = [FetchBlob(digest=DIGEST, start=start, num_bytes=100_000) for start in starts]
    parts = [bytes(payload or b"") for _, payload in client.call_many(calls, PATIENCE_S, num_under_way=5)]
    assert b"".join(parts) == BLOB


def check_calls_may_depend_on_answers(network: Network) -> None:
    _, client = opened(network, Clerk())
    seen: list[int] = []

    def calls() -> Iterator[Call]:
        while sum(seen) < 30_000:
            yield FetchBlob(digest=DIGEST, start=sum(seen), num_bytes=1000)

    for _, payload in client.call_many(calls(), PATIENCE_S, num_under_way=3):
        seen.append(payload.nbytes if payload is not None else 0)
    assert 30 <= len(seen) <= 30 + 3


def check_abandoned_calls_disturb_no_later_ones(network: Network) -> None:
    _, client = opened(network, Clerk())
    calls = [FetchBlob(digest=DIGEST, start=start, num_bytes=10) for start in range(100)]
    answers = client.call_many(calls, PATIENCE_S)
    next(answers)
    answers.close()
    _, payload = client.call(FetchBlob(digest=DIGEST, start=500, num_bytes=10), PATIENCE_S)
    assert bytes(payload or b"") == BLOB[500:510]


def check_what_cannot_be_asked_is_refused(network: Network) -> None:
    clerk = Clerk()
    _, client = opened(network, clerk)
    good = FetchBlob(digest=DIGEST, start=0, num_bytes=1)
    for bad in (
        replace(good, start=-1),
        replace(good, num_bytes=-1),
        replace(good, num_bytes=MAX_PART_BYTES + 1),
        replace(good, digest="../../etc/passwd"),
        replace(good, digest=DIGEST.upper()),
        DescribeTensors(names=("y" * MAX_CALL_BYTES,)),
    ):
        assert isinstance(client.call(bad, PATIENCE_S)[0], Refused)
    assert clerk.asked == []
    assert isinstance(client.call(good, PATIENCE_S)[0], BlobPart)


def check_answers_that_do_not_fit_are_errors(network: Network) -> None:
    wrong: list[Answer | tuple[Answer, Buffer]] = [
        TensorDigests(digests=(DIGEST,)),
        Welcome(name="x", inbox_port=1, inbox_name="y", encrypt=True),
        BlobPart(total_bytes=10),
        (BlobPart(total_bytes=10), b"123456789"),
        (BlobPart(total_bytes=10), b"12345678901"),
        (BlobPart(total_bytes=-5), b"12345"),
        (Refused(reason="no"), b"12345"),
    ]
    answers = iter(wrong)
    _, client = opened(network, lambda caller, call: next(answers))
    for _ in wrong:
        with pytest.raises(ProtocolError, match="home") as caught:
            client.call(FetchBlob(digest=DIGEST, start=0, num_bytes=100), PATIENCE_S)
        assert caught.value.peer == "home"


def check_digests_that_are_none_are_errors(network: Network) -> None:
    wrong = [(), (DIGEST, DIGEST), ("../" * 21 + "x",), (DIGEST + "0",), (DIGEST + "\n",)]
    answers = iter(wrong)
    _, client = opened(network, lambda caller, call: TensorDigests(digests=next(answers)))
    for _ in wrong:
        with pytest.raises(ProtocolError, match="home"):
            client.call(DescribeTensors(names=("a",)), PATIENCE_S)


def check_another_key_is_never_asked(network: Network) -> None:
    clerk = Clerk()
    home, other, worker = (network.transport(name) for name in ("home", "other", "worker"))
    service = home.open_service(clerk)
    wrong = replace(service.address, public_key=other.public_key)
    with pytest.raises(PeerTimeoutError, match="home") as caught:
        worker.connect_service(wrong).call(KNOCK, 0.3)
    assert caught.value.peer == "home"
    assert clerk.asked == []


def check_a_service_that_has_ended_is_a_timeout(network: Network) -> None:
    service, client = opened(network, Clerk())
    client.call(KNOCK, PATIENCE_S)
    service.close()
    service.close()
    with pytest.raises(PeerTimeoutError, match="home"):
        client.call(KNOCK, 0.3)


def check_a_closed_client_asks_nothing(network: Network) -> None:
    _, client = opened(network, Clerk())
    client.call(KNOCK, PATIENCE_S)
    client.close()
    client.close()
    with pytest.raises(CommunicationError, match="closed"):
        client.call(KNOCK, PATIENCE_S)


def check_many_clients_at_once(network: Network) -> None:
    home = network.transport("home")
    service = home.open_service(Clerk())
    lengths: list[int] = []

    def fetch(number: int, transport: ServingTransport) -> None:
        calls = [FetchBlob(digest=DIGEST, start=start, num_bytes=number) for start in range(50)]
        client = transport.connect_service(service.address)
        lengths.extend(payload.nbytes for _, payload in client.call_many(calls, PATIENCE_S) if payload is not None)

    threads = []
    for number in range(1, 5):
        transport = network.transport(f"worker-{number}")
        home.admit(f"worker-{number}", transport.public_key)
        threads.append(threading.Thread(target=fetch, args=(number, transport)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(lengths) == sorted([1, 2, 3, 4] * 50)


CHECKS: list[Callable[[Network], None]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
