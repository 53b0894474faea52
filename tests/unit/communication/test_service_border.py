"""What reaches a service from people who do not keep to our protocol, and what of ours they can read."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import zmq
from msgspec.structs import replace

from butterfly.calls import Answer, BlobPart, Call, DescribeTensors, FetchBlob, Knock, Refused, encode
from butterfly.communication import Buffer, Caller, KeyPair, Service, ServiceClient, ZmqTransport
from butterfly.communication.services.server import MAX_FRAME_BYTES
from butterfly.errors import ConfigError, PeerTimeoutError
from tests.contract.service_contract import BLOB, DIGEST, KNOCK, PATIENCE_S, Clerk
from tests.support.tcp_proxy import TcpProxy

FETCH = FetchBlob(digest=DIGEST, start=0, num_bytes=1 << 20)


@pytest.fixture
def home() -> Iterator[ZmqTransport]:
    with closing(ZmqTransport("home", KeyPair.generate())) as transport:
        yield transport


@pytest.fixture
def service(home: ZmqTransport) -> Service:
    return home.open_service(Clerk())


@pytest.fixture
def worker(home: ZmqTransport) -> Iterator[ZmqTransport]:
    with closing(ZmqTransport("worker", KeyPair.generate())) as transport:
        home.admit("worker", transport.public_key)
        yield transport


@pytest.fixture
def client(worker: ZmqTransport, service: Service) -> ServiceClient:
    return worker.connect_service(service.address)


def port_of(service: Service) -> int:
    return int(service.address.endpoint.rpartition(":")[2])


@contextmanager
def raw_dealer(service: Service, keys: KeyPair | None = None, queue: int = 100) -> Iterator[zmq.Socket[bytes]]:
    """A socket with a key of its own that sends whatever frames it likes."""
    keys = keys or KeyPair.generate()
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger, dealer.rcvhwm = 0, queue
    dealer.curve_publickey, dealer.curve_secretkey = keys.public_key.encode(), keys.secret_key.encode()
    dealer.curve_serverkey = service.address.public_key.encode()
    dealer.connect(service.address.endpoint)
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


def assert_still_answers(client: ServiceClient) -> None:
    assert isinstance(client.call(replace(FETCH, num_bytes=10), PATIENCE_S)[0], BlobPart)


def test_random_frames_harm_nobody(service: Service, client: ServiceClient) -> None:
    rng = random.Random(6)
    number = bytes(8)
    good = encode(FETCH)
    with raw_dealer(service) as dealer:
        for _ in range(500):
            cut = bytearray(good)
            cut[rng.randrange(len(cut))] = rng.randrange(256)
            frames = rng.choice(
                [
                    [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 5))],
                    [number, rng.randbytes(rng.randrange(2000))],
                    [number, bytes(cut)],
                    [number, good[: rng.randrange(len(good))]],
                    [number, good, b"a payload"],
                    [number, b"\x91" * 10_000],
                    [b"", b""],
                ]
            )
            dealer.send_multipart(frames)
        dealer.send_multipart([b"the last", encode(KNOCK)])
        while True:  # answers come in order, so this one says that all before were looked at
            assert dealer.poll(int(PATIENCE_S * 1000)), "the service does not answer any more"
            reply = dealer.recv_multipart()
            if reply[0] == b"the last":
                break
            assert len(reply) == 2
    assert_still_answers(client)


def test_noise_on_the_port_harms_nobody(service: Service, client: ServiceClient) -> None:
    rng = random.Random(7)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(10_000), b"\xff" + bytes(8) + b"\x7f", b""):
        with socket.create_connection(("127.0.0.1", port_of(service))) as connection:
            connection.sendall(noise)
    assert_still_answers(client)


def test_an_oversized_frame_ends_its_connection_only(service: Service, client: ServiceClient) -> None:
    with raw_dealer(service) as dealer:
        dealer.send_multipart([bytes(8), bytes(MAX_FRAME_BYTES + 1)])
        assert not dealer.poll(100), "it was answered"
        assert_still_answers(client)
        dealer.send_multipart([b"connect!", encode(KNOCK)])
        assert dealer.poll(int(PATIENCE_S * 1000)), "the connection did not come back"


def test_what_is_too_long_for_a_call_is_refused_in_words(
    service: Service, client: ServiceClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            answer, _ = client.call(DescribeTensors(names=("x" * 20_000,)), PATIENCE_S)
            assert isinstance(answer, Refused)
            assert "are allowed" in answer.reason
    assert len(caplog.records) <= 2, "one line a second"


def test_a_client_without_encryption_is_not_heard(service: Service, client: ServiceClient) -> None:
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(service.address.endpoint)
    dealer.send_multipart([bytes(8), encode(KNOCK)])
    assert_still_answers(client)
    assert not dealer.poll(0)
    dealer.close()
    context.term()


def test_one_who_takes_no_answers_blocks_nobody(
    home: ZmqTransport, worker: ZmqTransport, service: Service, client: ServiceClient
) -> None:
    rude = KeyPair.generate()
    home.admit("rude", rude.public_key)
    with raw_dealer(service, rude, queue=1) as dealer:
        for number in range(300):
            dealer.send_multipart([number.to_bytes(8, "big"), encode(FETCH)])
        for _ in range(20):
            assert_still_answers(client)
        num_taken = 0
        while dealer.poll(500):
            num_taken += len(dealer.recv_multipart()) == 3
    assert num_taken < 200, "all of it was kept for one who did not take it"


def test_an_expelled_key_is_a_strangers(home: ZmqTransport, service: Service, client: ServiceClient) -> None:
    assert_still_answers(client)
    home.expel("worker")
    assert isinstance(client.call(FETCH, PATIENCE_S)[0], Refused)


def test_the_host_of_a_caller_is_known(home: ZmqTransport, worker: ZmqTransport) -> None:
    clerk = Clerk()
    client = worker.connect_service(home.open_service(clerk).address)
    client.call(KNOCK, PATIENCE_S)
    assert clerk.asked[0][0].host == "127.0.0.1"


def test_no_log_and_no_error_holds_a_secret(
    service: Service, client: ServiceClient, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "a-secret-that-is-quite-easy-to-find"
    knock = Knock(secret=secret, name="x" * 20_000, protocol_version=1, version="1")
    with caplog.at_level(logging.DEBUG), raw_dealer(service) as dealer:
        assert secret not in str(client.call(knock, PATIENCE_S))
        dealer.send_multipart([bytes(8), encode(replace(KNOCK, secret=secret))[:-3]])
        assert dealer.poll(int(PATIENCE_S * 1000))
        assert secret.encode() not in b"".join(dealer.recv_multipart())
    assert secret not in caplog.text


def test_a_port_that_is_taken_is_named(home: ZmqTransport, service: Service) -> None:
    port = port_of(service)
    with pytest.raises(ConfigError, match=f"port {port} is taken"):
        home.open_service(Clerk(), port)
    with pytest.raises(ConfigError, match=f"port {port} is taken"):
        home.open_inbox(port)


def test_a_port_can_be_chosen_and_used_again(home: ZmqTransport, service: Service) -> None:
    port = port_of(service)
    service.close()
    again = home.open_service(Clerk(), port)
    assert port_of(again) == port
    again.close()
    inbox = home.open_inbox(port)
    assert inbox.address.endpoint.endswith(f":{port}")


def test_nothing_readable_is_on_the_wire(home: ZmqTransport, worker: ZmqTransport) -> None:
    """Also where messages are not encrypted."""
    text = b"every word of this tensor is meant for one reader only " * 2000

    def answer(caller: Caller, call: Call) -> Answer | tuple[Answer, Buffer]:
        return BlobPart(total_bytes=len(text)), text

    with closing(ZmqTransport("plain", KeyPair.generate(), encrypt=False)) as plain:
        plain.admit("worker", worker.public_key)
        service = plain.open_service(answer)
        with TcpProxy(port_of(service)) as proxy:
            address = replace(service.address, endpoint=f"tcp://127.0.0.1:{proxy.port}")
            client = worker.connect_service(address)
            _, payload = client.call(replace(FETCH, num_bytes=len(text)), PATIENCE_S)
            client.close()
        assert bytes(payload or b"") == text
        assert len(proxy.from_target) > len(text)
        for captured in (proxy.from_target, proxy.to_target):
            assert not any(bytes(captured).count(word) for word in (b"meant for", DIGEST.encode(), b"FetchBlob"))


def test_a_key_in_the_middle_is_found_out(home: ZmqTransport, worker: ZmqTransport, service: Service) -> None:
    """Somebody with a key of his own answers at the address where home is expected."""
    with closing(ZmqTransport("middle", KeyPair.generate())) as middle:
        middle.admit("worker", worker.public_key)
        clerk = Clerk()
        endpoint = middle.open_service(clerk).address.endpoint
        client = worker.connect_service(replace(service.address, endpoint=endpoint))
        with pytest.raises(PeerTimeoutError, match="another key than expected"):
            client.call(KNOCK, 0.3)
        assert clerk.asked == []


def test_a_cut_connection_comes_back(worker: ZmqTransport, service: Service) -> None:
    with TcpProxy(port_of(service), cut_after_bytes=3 << 20) as proxy:
        client = worker.connect_service(replace(service.address, endpoint=f"tcp://127.0.0.1:{proxy.port}"))
        calls = [replace(FETCH, start=start, num_bytes=1 << 18) for start in range(0, len(BLOB), 1 << 18)]
        with pytest.raises(PeerTimeoutError, match="did not answer FetchBlob"):
            list(client.call_many(calls, 0.5))
        assert proxy.num_cuts == 1
        assert_still_answers(client)
        client.close()


def test_a_wait_can_be_given_up(home: ZmqTransport, worker: ZmqTransport) -> None:
    class Enough(Exception):
        pass

    released = threading.Event()

    def never(caller: Caller, call: Call) -> Answer:
        released.wait(PATIENCE_S)
        return Refused(reason="too late")

    def give_up() -> None:
        raise Enough

    client = worker.connect_service(home.open_service(never).address)
    with pytest.raises(Enough):
        client.call(KNOCK, PATIENCE_S, while_waiting=give_up)
    released.set()
