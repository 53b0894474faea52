from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import pytest

from butterfly.api import ApiServer, BoundPort, create_app
from butterfly.monitoring import Metrics
from tests.unit.api.doubles import ByteTokenizer, ScriptedEngine, served_model


@dataclass
class Service:
    """A running server with its engine, and the clients that talk to it."""

    engine: ScriptedEngine
    url: str
    http: httpx.Client
    openai: openai.OpenAI


class _Swappable:
    """Lets every test of a module have a fresh engine behind one server."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.current = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self.current, name)


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="module")
def running(tokenizer: ByteTokenizer) -> Iterator[tuple[_Swappable, str]]:
    threads_before = set(threading.enumerate())
    engine = _Swappable(ScriptedEngine(tokenizer))
    app = create_app(engine, served_model(tokenizer), metrics=Metrics())  # type: ignore[arg-type]
    with ApiServer(app, BoundPort("127.0.0.1", 0)) as server:
        yield engine, server.url
    assert set(threading.enumerate()) <= threads_before


@pytest.fixture
def service(running: tuple[_Swappable, str], tokenizer: ByteTokenizer) -> Iterator[Service]:
    swappable, url = running
    engine = swappable.current = ScriptedEngine(tokenizer)
    with (
        httpx.Client(base_url=url, timeout=20, trust_env=False) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield Service(engine, url, http, client)
    engine.check_nothing_is_open()
