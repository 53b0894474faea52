"""Plain TCP sockets that measure a path from inside the nodes: `python -m benchmarks.lab.probe serve | measure`.

`serve` prints its port and answers one client after another until it is killed; `measure` prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import statistics
import time

from benchmarks.lab.shapes import PROBE_BYTES

CHUNK_BYTES = 1 << 18
SETTLING_SHARE = 0.4  # of a bulk transfer, before its rate counts: TCP finds the link's rate first


def serve() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    if connection.recv(1) == b"r":
                        sink(connection)
                    else:
                        echo(connection)
                except (ConnectionError, TimeoutError):
                    continue


def echo(connection: socket.socket) -> None:
    while message := connection.recv(PROBE_BYTES, socket.MSG_WAITALL):
        connection.sendall(message)


def sink(connection: socket.socket) -> None:
    """Take all bytes until the sender shuts its side, then answer with the rate, in bit/s, once it had settled."""
    buffer, arrivals, num_bytes = bytearray(CHUNK_BYTES), [], 0
    while chunk_bytes := connection.recv_into(buffer):
        num_bytes += chunk_bytes
        arrivals.append((time.monotonic(), num_bytes))
    (start_s, _), (end_s, end_bytes) = arrivals[0], arrivals[-1]
    settled_s = start_s + SETTLING_SHARE * (end_s - start_s)
    from_s, from_bytes = next(arrival for arrival in arrivals if arrival[0] >= settled_s)
    rate = (end_bytes - from_bytes) * 8 / (end_s - from_s) if end_s > from_s else 0.0
    connection.sendall(json.dumps(rate).encode())


def connect(address: str, port: int, timeout_s: float) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def measure_rate(address: str, port: int, seconds: float, timeout_s: float) -> float:
    """Bits per second of payload of one bulk transfer."""
    chunk = bytes(CHUNK_BYTES)
    with connect(address, port, timeout_s) as connection:
        connection.sendall(b"r")
        connection.setblocking(False)
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            if select.select((), [connection], (), left_s)[1]:
                connection.send(chunk)
        connection.settimeout(timeout_s)
        connection.shutdown(socket.SHUT_WR)
        return float(json.loads(connection.recv(100)))


def measure_rtts(address: str, port: int, seconds: float, pause_s: float, timeout_s: float) -> list[float]:
    """Seconds of each there and back of a small message, one at a time, with a pause before each."""
    rtts: list[float] = []
    with connect(address, port, timeout_s) as connection:
        connection.sendall(b"e")
        end_s = time.monotonic() + seconds
        while len(rtts) < 3 or time.monotonic() < end_s:
            time.sleep(pause_s)
            sent_s = time.monotonic()
            connection.sendall(bytes(PROBE_BYTES))
            if len(connection.recv(PROBE_BYTES, socket.MSG_WAITALL)) < PROBE_BYTES:
                raise ConnectionError("the other side closed the connection")
            rtts.append(time.monotonic() - sent_s)
    return rtts


def measure(options: argparse.Namespace) -> None:
    to = (options.address, options.port)
    result: dict[str, float] = {}
    if options.rtt_s:
        rtts = sorted(measure_rtts(*to, options.rtt_s, options.pause_s, options.timeout_s))
        p99 = rtts[round(0.99 * (len(rtts) - 1))]
        result |= {"median_rtt_s": statistics.median(rtts), "p99_rtt_s": p99, "num_messages": len(rtts)}
    if options.rate_s:
        result["rate_bits_per_s"] = measure_rate(*to, options.rate_s, options.timeout_s)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer measurements")
    measuring = commands.add_parser("measure", help="measure the path to a server")
    measuring.add_argument("address")
    measuring.add_argument("port", type=int)
    measuring.add_argument("--rate-s", type=float, default=0.5, help="seconds of bulk transfer; 0: none")
    measuring.add_argument("--rtt-s", type=float, default=0.3, help="seconds of small messages; 0: none")
    measuring.add_argument("--pause-s", type=float, default=0.002, help="between small messages")
    measuring.add_argument("--timeout-s", type=float, default=10.0, help="for each answer of the other side")
    options = parser.parse_args()
    if options.command == "serve":
        serve()
    else:
        measure(options)


if __name__ == "__main__":
    main()
