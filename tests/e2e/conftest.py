"""One server over three workers for all tests of this folder: starting one takes as long as many tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.support.product import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """What `make serve` starts, on a free port. Ends by SIGTERM while idle, without a word."""
    with Server() as server:
        yield server.wait_ready()
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.wait_gone() == 143
        assert server.complaints() == ""


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http
