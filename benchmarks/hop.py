"""One hop between two processes on this machine: our transport beside a raw TCP socket, which is the bound.

A stage's neighbour has been waiting for one stage time when a message comes, so the wait between messages matters:
a core that slept longer wakes later. `python -m benchmarks.hop`; the last line is one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import statistics
import struct
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

from butterfly.communication import KeyPair, ZmqTransport
from butterfly.messages import Step, TensorHeader
from butterfly.specs import StageTiming, StepPlan

MESSAGES, WARM_UP = 150, 20
PAYLOAD_BYTES = 1152  # one bf16 hidden state of SmolLM2
WAITS_S = (0.002, 0.015)  # between messages: a small stage, a large one
DEADLINE_S = 10.0

_processes = multiprocessing.get_context("spawn")


def compute(seconds: float) -> None:
    """Keep this core busy, as a stage does before it sends."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def receive_tcp(answers: Queue[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers.put(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            times = []
            for _ in range(MESSAGES):
                message = connection.recv(PAYLOAD_BYTES + 8, socket.MSG_WAITALL)
                times.append(time.monotonic() - struct.unpack("d", message[:8])[0])
    answers.put(times)


def send_tcp(answers: Queue[Any], wait_s: float) -> None:
    with socket.create_connection(("127.0.0.1", answers.get(timeout=DEADLINE_S))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(MESSAGES):
            compute(wait_s)
            connection.sendall(struct.pack("d", time.monotonic()) + bytes(PAYLOAD_BYTES))


def receive_zmq(answers: Queue[Any], keys: KeyPair, sender_key: str, encrypt: bool) -> None:
    transport = ZmqTransport("receiver", keys, encrypt=encrypt)
    transport.admit("sender", sender_key)
    inbox = transport.open_inbox()
    answers.put(inbox.address)
    times: list[float] = []
    while len(times) < MESSAGES and (received := inbox.receive(DEADLINE_S)) is not None:
        assert isinstance(received.message, Step)
        times.append(received.received_s - received.message.timings[0].finished_s)
    answers.put(times)
    transport.close()


def send_zmq(answers: Queue[Any], keys: KeyPair, encrypt: bool, wait_s: float) -> None:
    transport = ZmqTransport("sender", keys, encrypt=encrypt)
    outbox = transport.connect(answers.get(timeout=DEADLINE_S))
    header = TensorHeader(dtype="bfloat16", shape=(1, PAYLOAD_BYTES // 2))
    for number in range(MESSAGES):
        compute(wait_s)
        now_s = time.monotonic()
        timing = StageTiming(worker="sender", received_s=now_s, started_s=now_s, finished_s=now_s, received_bytes=0)
        plan = StepPlan(step_id=number, slot=0, sequences=())
        step = Step(epoch=1, plan=plan, hidden=header, timings=(timing,))
        outbox.send(step, bytes(PAYLOAD_BYTES), timeout_s=DEADLINE_S)
    transport.close()


def one_way_us(receiver: Callable[..., None], arguments: tuple[Any, ...], send: Callable[[Queue[Any]], None]) -> float:
    """Median time in microseconds from before the send to after the receive."""
    answers: Queue[Any] = _processes.Queue()
    process = _processes.Process(target=receiver, args=(answers, *arguments), daemon=True)
    process.start()
    send(answers)
    times = answers.get(timeout=DEADLINE_S)
    process.join(DEADLINE_S)
    return float(statistics.median(times[WARM_UP:])) * 1e6


def main() -> None:
    results = []
    for wait_s in WAITS_S:
        row = {"wait_ms": wait_s * 1e3, "tcp_us": one_way_us(receive_tcp, (), partial(send_tcp, wait_s=wait_s))}
        for name, encrypt in (("zmq_us", False), ("zmq_curve_us", True)):
            ours, theirs = KeyPair.generate(), KeyPair.generate()
            send = partial(send_zmq, keys=ours, encrypt=encrypt, wait_s=wait_s)
            row[name] = one_way_us(receive_zmq, (theirs, ours.public_key, encrypt), send)
        results.append(row)
        print(", ".join(f"{name} {value:.0f}" for name, value in row.items()))
    print(json.dumps({"benchmark": "hop", "payload_bytes": PAYLOAD_BYTES, "rows": results}))


if __name__ == "__main__":
    main()
