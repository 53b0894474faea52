from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from butterfly.api import ApiServer, BoundPort
from tests.unit.loadgen.scripted import Script, scripted_app


class Servers:
    """Starts scripted servers that end with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, script: Script) -> str:
        """Return the address."""
        server = ApiServer(scripted_app(script), BoundPort("127.0.0.1", 0), grace_s=0)
        return self._stack.enter_context(server).url


@pytest.fixture
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)
