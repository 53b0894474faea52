"""Servers of a benchmark: awaited, refused after a deadline, ended with the block."""

from __future__ import annotations

import socket
import sys

import pytest
from benchmarks.processes import ServerFailedError, fetch, running, wait_until_ready

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(503 if Handler.asked < 3 and self.path == "/ready" else 200)
        self.end_headers()
        self.wfile.write(self.path.encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_server_is_awaited_until_it_stops_refusing_and_ends_with_the_block(port: int) -> None:
    with running("server", [sys.executable, "-c", SERVER, str(port)], None) as server:
        wait_until_ready(server, f"http://127.0.0.1:{port}/ready", 20)
        assert fetch(f"http://127.0.0.1:{port}/status", None) == b"/status"
        wait_until_ready(server, f"tcp://127.0.0.1:{port}", 20)
        process = server.process
    assert process.returncode is not None


def test_a_server_that_never_listens_is_given_up(port: int) -> None:
    sleeper = [sys.executable, "-c", "import time; print('idle', flush=True); time.sleep(100)"]
    with (
        running("sleeper", sleeper, None) as server,
        pytest.raises(ServerFailedError, match=r"sleeper is not ready: .* did not answer within"),
    ):
        wait_until_ready(server, f"tcp://127.0.0.1:{port}", 0.2)


def test_fetching_from_nobody_says_so(port: int) -> None:
    with pytest.raises(ServerFailedError, match="did not answer"):
        fetch(f"http://127.0.0.1:{port}/status", None, timeout_s=0.1)
