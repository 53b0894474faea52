"""What every transport promises: each function here checks one promise on any implementation."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import pytest

from butterfly.communication import Buffer, Inbox, Outbox, Received, Transport
from butterfly.errors import CommunicationError, PeerTimeoutError, ProtocolError
from butterfly.messages import Message, PeerAddress, Ping, Probe, Shutdown, Step, TensorHeader, encode
from butterfly.specs import StepPlan

PATIENCE_S = 10.0  # longer than anything here takes; reached only when a promise is broken


class Network(Protocol):
    """One world of transports that can reach one another."""

    def transport(self, name: str) -> Transport: ...

    def send_raw(self, outbox: Outbox, frames: Sequence[Buffer]) -> None:
        """Send frames that `Outbox.send` would refuse."""


def step(num_tokens: int, hidden_size: int, step_id: int = 1, epoch: int = 1) -> Step:
    """Return a step that announces a float16 hidden state of this shape."""
    header = TensorHeader(dtype="float16", shape=(num_tokens, hidden_size))
    return Step(epoch=epoch, plan=StepPlan(step_id=step_id, slot=0, sequences=()), hidden=header)


def joined(network: Network, *senders: str) -> tuple[Inbox, list[Outbox]]:
    """Return the inbox of "receiver" and a connected, admitted outbox for each sender."""
    receiver = network.transport("receiver")
    inbox = receiver.open_inbox()
    outboxes = []
    for name in senders:
        transport = network.transport(name)
        receiver.admit(name, transport.public_key)
        outboxes.append(transport.connect(inbox.address))
    return inbox, outboxes


def check_messages_arrive_in_order(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    sent: list[Message] = [Ping(epoch=number) for number in range(200)]
    received: list[Message] = []
    reader = threading.Thread(target=lambda: received.extend(expect(inbox).message for _ in sent))
    reader.start()
    for message in sent:
        assert outbox.send(message, timeout_s=PATIENCE_S) == len(encode(message))
    reader.join(PATIENCE_S)
    assert received == sent


def check_payloads_arrive_intact(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    for num_bytes in (0, 2, 8 << 10, 4 << 20):
        message = step(1, num_bytes // 2)
        payload = random.Random(num_bytes).randbytes(num_bytes)
        sent_bytes = outbox.send(message, payload, timeout_s=PATIENCE_S)
        before_s = time.monotonic()
        received = expect(inbox)
        assert received.message == message
        assert received.payload is not None
        assert bytes(received.payload) == payload
        assert received.sender == "sender"
        assert received.num_bytes == sent_bytes == len(encode(message)) + num_bytes
        assert before_s <= received.received_s <= time.monotonic()


def check_probes_carry_payloads_or_none(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    for header, payload in ((None, None), (TensorHeader(dtype="bfloat16", shape=(3,)), b"123456")):
        probe = Probe(epoch=0, number=1, reply_to=inbox.address, payload=header)
        outbox.send(probe, payload, timeout_s=PATIENCE_S)
        received = expect(inbox)
        assert received.message == probe
        assert (None if received.payload is None else bytes(received.payload)) == payload
    probe = Probe(epoch=0, number=1, reply_to=inbox.address, payload=TensorHeader(dtype="bfloat16", shape=(3,)))
    with pytest.raises(ProtocolError, match=r"Probe with no payload where its header announces a payload of 6 bytes"):
        outbox.send(probe, timeout_s=PATIENCE_S)


def check_any_contiguous_buffer_is_a_payload(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    matrix: Buffer = memoryview(bytearray(range(64))).cast("Q", (2, 4))
    outbox.send(step(1, 32), matrix, timeout_s=PATIENCE_S)
    received = expect(inbox)
    assert received.payload is not None
    assert bytes(received.payload) == bytes(range(64))
    received.payload[0] = 7  # belongs to the receiver
    assert bytes(matrix) == bytes(range(64))


def check_receive_keeps_its_deadline(network: Network) -> None:
    inbox, _ = joined(network)
    before_s = time.monotonic()
    assert inbox.receive(0.05) is None
    assert 0.05 <= time.monotonic() - before_s < PATIENCE_S / 2
    assert inbox.receive_nowait() is None


def check_send_deadline_names_the_peer(network: Network) -> None:
    receiver = network.transport("receiver")
    inbox = receiver.open_inbox()
    nobody = PeerAddress(name="ghost", endpoint=inbox.address.endpoint, public_key=inbox.address.public_key)
    inbox.close()
    outbox = network.transport("sender").connect(nobody)
    before_s = time.monotonic()
    with pytest.raises(PeerTimeoutError, match="ghost") as caught:
        outbox.send(Ping(epoch=1), timeout_s=0.05)
    assert 0.05 <= time.monotonic() - before_s < PATIENCE_S / 2
    assert caught.value.peer == "ghost"
    with pytest.raises(PeerTimeoutError):
        outbox.send(Ping(epoch=1), timeout_s=0)


def check_wake_ends_a_receive(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    threading.Thread(target=inbox.wake).start()
    before_s = time.monotonic()
    assert inbox.receive(PATIENCE_S) is None
    assert time.monotonic() - before_s < PATIENCE_S / 2
    for _ in range(100):
        inbox.wake()
    assert inbox.receive(PATIENCE_S) is None
    outbox.send(Ping(epoch=1), timeout_s=PATIENCE_S)
    assert expect(inbox).message == Ping(epoch=1)  # a hundred wakes were one


def check_strangers_are_refused(network: Network) -> None:
    inbox, (friend,) = joined(network, "friend")
    stranger = network.transport("friend").connect(inbox.address)  # the same name, another key
    with pytest.raises(PeerTimeoutError):
        stranger.send(Shutdown(epoch=1), timeout_s=0.2)
    friend.send(Ping(epoch=1), timeout_s=PATIENCE_S)
    assert expect(inbox).message == Ping(epoch=1)
    assert inbox.receive_nowait() is None


def check_an_impostor_cannot_be_reached(network: Network) -> None:
    inbox, _ = joined(network)
    address = inbox.address
    other_key = network.transport("other").public_key
    sender = network.transport("sender")
    outbox = sender.connect(PeerAddress(name="receiver", endpoint=address.endpoint, public_key=other_key))
    with pytest.raises(PeerTimeoutError, match="receiver"):
        outbox.send(Ping(epoch=1), timeout_s=0.2)
    assert inbox.receive_nowait() is None


def check_admission_may_come_after_the_connection(network: Network) -> None:
    receiver, sender = network.transport("receiver"), network.transport("sender")
    inbox = receiver.open_inbox()
    outbox = sender.connect(inbox.address)
    with pytest.raises(PeerTimeoutError):
        outbox.send(Ping(epoch=1), timeout_s=0.2)
    receiver.admit("sender", sender.public_key)
    outbox.send(Ping(epoch=2), timeout_s=PATIENCE_S)
    assert expect(inbox).message == Ping(epoch=2)


def check_the_expelled_are_not_heard(network: Network) -> None:
    receiver = network.transport("receiver")
    inbox = receiver.open_inbox()
    outboxes = {}
    for name in ("leaving", "staying"):
        transport = network.transport(name)
        receiver.admit(name, transport.public_key)
        outboxes[name] = transport.connect(inbox.address)
        outboxes[name].send(Ping(epoch=1), timeout_s=PATIENCE_S)
        assert expect(inbox).sender == name
    outboxes["leaving"].send(Ping(epoch=2), timeout_s=PATIENCE_S)
    receiver.expel("leaving")
    outboxes["staying"].send(Ping(epoch=3), timeout_s=PATIENCE_S)
    received = expect(inbox)
    assert (received.sender, received.message) == ("staying", Ping(epoch=3))
    assert inbox.receive(0.05) is None


def check_a_new_key_replaces_the_old_one(network: Network) -> None:
    receiver, first, second = (network.transport(name) for name in ("receiver", "worker", "worker"))
    inbox = receiver.open_inbox()
    receiver.admit("worker", first.public_key)
    receiver.admit("worker", second.public_key)
    with pytest.raises(PeerTimeoutError):
        first.connect(inbox.address).send(Ping(epoch=1), timeout_s=0.2)
    second.connect(inbox.address).send(Ping(epoch=2), timeout_s=PATIENCE_S)
    assert expect(inbox).message == Ping(epoch=2)


def check_garbage_is_a_protocol_error(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    good = encode(step(1, 2))
    for frames in (
        [b""],
        [b"\xff\x00garbage"],
        [random.Random(1).randbytes(10_000)],
        [encode(Ping(epoch=1))[:-1]],
        [encode(Ping(epoch=1)), b"a payload without a header"],
        [good],  # announces a payload that is missing
        [good, b"123"],  # one byte short
        [good, b"12345"],
        [good, b"1234", b"more"],
        [encode(step(-1, -2)), b"1234"],
        [b"\x91" * 100_000],  # nested deeper than any message
    ):
        network.send_raw(outbox, frames)
        with pytest.raises(ProtocolError, match="sender") as caught:
            inbox.receive(PATIENCE_S)
        assert caught.value.peer == "sender"
    outbox.send(Ping(epoch=2), timeout_s=PATIENCE_S)
    assert expect(inbox).message == Ping(epoch=2)


def check_a_wrong_payload_is_not_sent(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    for message, payload in ((Ping(epoch=1), b"x"), (step(1, 2), None), (step(1, 2), b"123")):
        with pytest.raises(ProtocolError):
            outbox.send(message, payload, timeout_s=PATIENCE_S)
    outbox.send(Ping(epoch=2), timeout_s=PATIENCE_S)
    assert expect(inbox).message == Ping(epoch=2)


def check_a_full_queue_gives_back_pressure(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    message, payload = step(1, 64 << 10), bytes(128 << 10)
    outbox.send(message, payload, timeout_s=PATIENCE_S)
    num_sent = 1 + send_until_full(outbox, message, payload)
    for _ in range(num_sent):  # nothing that was accepted is lost, and room comes back
        assert expect(inbox).message == message
    outbox.send(Ping(epoch=1), timeout_s=PATIENCE_S)
    assert expect(inbox).message == Ping(epoch=1)


def check_many_senders(network: Network) -> None:
    names = [f"sender-{number}" for number in range(8)]
    inbox, outboxes = joined(network, *names)
    threads = [
        threading.Thread(
            target=lambda outbox=outbox: [outbox.send(Ping(epoch=n), timeout_s=PATIENCE_S) for n in range(50)]
        )
        for outbox in outboxes
    ]
    for thread in threads:
        thread.start()
    heard: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(50 * len(names)):
        received = expect(inbox)
        heard[received.sender].append(received.message.epoch)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert heard == {name: list(range(50)) for name in names}


def check_close_is_idempotent_and_final(network: Network) -> None:
    transport = network.transport("receiver")
    inbox = transport.open_inbox()
    outbox = transport.connect(inbox.address)
    for _ in range(2):
        outbox.close()
        inbox.close()
        transport.close()
    inbox.wake()  # a late signal handler must not fail
    with pytest.raises(CommunicationError, match="closed"):
        inbox.receive(PATIENCE_S)
    with pytest.raises(CommunicationError, match="closed"):
        outbox.send(Ping(epoch=1), timeout_s=PATIENCE_S)


def check_a_last_message_leaves_before_the_close(network: Network) -> None:
    receiver, sender = network.transport("receiver"), network.transport("sender")
    inbox = receiver.open_inbox()
    receiver.admit("sender", sender.public_key)
    outbox = sender.connect(inbox.address)
    outbox.send(Shutdown(epoch=1), timeout_s=PATIENCE_S)
    sender.close()
    assert expect(inbox).message == Shutdown(epoch=1)


def check_unencodable_messages_do_not_pass(network: Network) -> None:
    inbox, (outbox,) = joined(network, "sender")
    with pytest.raises(TypeError):
        outbox.send(Ping(epoch=object()), timeout_s=PATIENCE_S)  # type: ignore[arg-type]
    outbox.send(Ping(epoch="one"), timeout_s=PATIENCE_S)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="sender"):
        inbox.receive(PATIENCE_S)


def send_until_full(outbox: Outbox, message: Message, payload: Buffer) -> int:
    """Return how many messages were accepted before one was not."""
    for num_sent in range(1000):
        try:
            outbox.send(message, payload, timeout_s=0.1)
        except PeerTimeoutError:
            return num_sent
    pytest.fail("a thousand messages fit into the queue")


def expect(inbox: Inbox) -> Received:
    """Return the next message; nothing within PATIENCE_S is a failure."""
    received = inbox.receive(PATIENCE_S)
    assert received is not None, "nothing arrived"
    return received


CHECKS: list[Callable[[Network], None]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
