"""What reaches a ZeroMQ inbox from people who do not keep to our protocol: nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import zmq

from butterfly.communication import Inbox, KeyPair, Outbox, ZmqTransport
from butterfly.errors import CommunicationError, ConfigError, PeerTimeoutError
from butterfly.messages import PeerAddress, Ping, Shutdown, encode

PATIENCE_S = 10.0


@pytest.fixture
def receiver() -> Iterator[ZmqTransport]:
    with closing(ZmqTransport("receiver", KeyPair.generate())) as transport:
        yield transport


@pytest.fixture
def friend(receiver: ZmqTransport) -> Iterator[ZmqTransport]:
    with closing(ZmqTransport("friend", KeyPair.generate())) as transport:
        receiver.admit("friend", transport.public_key)
        yield transport


def assert_only_the_friend_is_heard(inbox: Inbox, friend: ZmqTransport) -> None:
    friend.connect(inbox.address).send(Ping(epoch=7), timeout_s=PATIENCE_S)
    received = inbox.receive(PATIENCE_S)
    assert received is not None
    assert (received.sender, received.message) == ("friend", Ping(epoch=7))
    assert inbox.receive_nowait() is None


def port_of(inbox: Inbox) -> int:
    return int(inbox.address.endpoint.rpartition(":")[2])


def test_a_client_without_encryption_never_gets_through(receiver: ZmqTransport, friend: ZmqTransport) -> None:
    inbox = receiver.open_inbox()
    context = zmq.Context()
    client = context.socket(zmq.PUSH)
    client.linger = 0
    client.connect(inbox.address.endpoint)
    client.send(encode(Shutdown(epoch=1)))
    assert_only_the_friend_is_heard(inbox, friend)
    client.close()
    context.term()


def test_a_claimed_key_does_not_pass_for_a_proven_one(receiver: ZmqTransport, friend: ZmqTransport) -> None:
    inbox = receiver.open_inbox()
    context = zmq.Context()
    client = context.socket(zmq.PUSH)
    client.linger = 0
    client.plain_username = friend.public_key.encode()
    client.plain_password = b"-"
    client.connect(inbox.address.endpoint)
    client.send(encode(Shutdown(epoch=1)))
    assert_only_the_friend_is_heard(inbox, friend)
    client.close()
    context.term()


def test_an_inbox_with_another_key_is_never_connected(receiver: ZmqTransport, friend: ZmqTransport) -> None:
    inbox = receiver.open_inbox()
    wrong = PeerAddress(name="receiver", endpoint=inbox.address.endpoint, public_key=KeyPair.generate().public_key)
    with pytest.raises(PeerTimeoutError, match="receiver"):
        friend.connect(wrong).send(Ping(epoch=1), timeout_s=0.3)
    assert_only_the_friend_is_heard(inbox, friend)


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 5000,
        # a valid ZMTP 3.1 greeting for CURVE, then noise where the handshake should be
        b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + bytes(15 + 1 + 31) + b"\4\xc8\5HELLO" + b"\xee" * 194,
    ],
    ids=["http", "0xff", "broken handshake"],
)
def test_raw_bytes_on_the_port_do_no_harm(noise: bytes, receiver: ZmqTransport, friend: ZmqTransport) -> None:
    inbox = receiver.open_inbox()
    with socket.create_connection(("127.0.0.1", port_of(inbox)), timeout=PATIENCE_S) as connection:
        connection.sendall(noise)
        assert_only_the_friend_is_heard(inbox, friend)


def test_many_strangers_do_not_keep_a_friend_out(receiver: ZmqTransport, friend: ZmqTransport) -> None:
    inbox = receiver.open_inbox()
    with closing(ZmqTransport("stranger", KeyPair.generate())) as stranger:
        outboxes = [stranger.connect(inbox.address) for _ in range(20)]
        with pytest.raises(PeerTimeoutError):
            outboxes[-1].send(Shutdown(epoch=1), timeout_s=0.2)
        assert_only_the_friend_is_heard(inbox, friend)


def test_a_peer_that_is_gone_becomes_a_timeout(friend: ZmqTransport) -> None:
    with closing(ZmqTransport("receiver", KeyPair.generate())) as receiver:
        receiver.admit("friend", friend.public_key)
        inbox = receiver.open_inbox()
        outbox = friend.connect(inbox.address)
        outbox.send(Ping(epoch=1), timeout_s=PATIENCE_S)
        assert inbox.receive(PATIENCE_S) is not None
    with pytest.raises(PeerTimeoutError, match="receiver"):
        send_for_ever(outbox)  # the loss is noticed within a few messages


def send_for_ever(outbox: Outbox) -> None:
    while True:
        outbox.send(Ping(epoch=2), timeout_s=0.2)


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://", "udp://127.0.0.1:1", "tcp://127.0.0.1:notaport"])
def test_an_unusable_endpoint_names_the_peer(endpoint: str, friend: ZmqTransport) -> None:
    address = PeerAddress(name="odd", endpoint=endpoint, public_key=friend.public_key)
    with pytest.raises(CommunicationError, match="odd") as caught:
        friend.connect(address)
    assert caught.value.peer == "odd"


@pytest.mark.parametrize("public_key", ["", "short", "ü" * 40, "\0" * 40])
def test_an_unusable_key_names_the_peer(public_key: str, friend: ZmqTransport) -> None:
    address = PeerAddress(name="odd", endpoint="tcp://127.0.0.1:1", public_key=public_key)
    with pytest.raises(CommunicationError, match="odd"):
        friend.connect(address)


def test_a_host_that_cannot_be_listened_on_is_a_config_error() -> None:
    with (
        closing(ZmqTransport("receiver", KeyPair.generate(), bind_host="192.0.2.1")) as transport,
        pytest.raises(ConfigError, match=r"192\.0\.2\.1"),
    ):
        transport.open_inbox()


def test_a_wildcard_needs_an_advertised_host() -> None:
    with pytest.raises(ConfigError, match="others connect to"):
        ZmqTransport("receiver", KeyPair.generate(), bind_host="0.0.0.0")
    with (
        closing(
            ZmqTransport("receiver", KeyPair.generate(), bind_host="0.0.0.0", advertised_host="127.0.0.1")
        ) as receiver,
        closing(ZmqTransport("friend", KeyPair.generate())) as friend,
    ):
        receiver.admit("friend", friend.public_key)
        inbox = receiver.open_inbox()
        assert inbox.address.endpoint.startswith("tcp://127.0.0.1:")
        assert_only_the_friend_is_heard(inbox, friend)
