"""One request over a connection that the server kept, or did not keep."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from butterfly.loadgen.asking import Asked, ask, open_client
from butterfly.loadgen.spec import LoadSpec

_EVENTS = b'data: {"choices": [{"text": "a", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(_EVENTS), _EVENTS)
CUT = ANSWER[:-20]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
LEAVE = b""  # close the connection instead of answering


async def asked_of(connections: Sequence[Sequence[bytes]], num_requests: int) -> list[Asked]:
    """Ask one after the other; each connection that is opened answers from its list, then closes."""
    remaining = iter(connections)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in next(remaining, ()):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 2" in head.lower()
            await reader.readexactly(2)
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, open_client(LoadSpec(url=url), None) as client:
        return [await ask(client, "/v1/completions", b"{}", 20.0) for _ in range(num_requests)]


def test_a_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    asked = asyncio.run(asked_of([[ANSWER, LEAVE], [ANSWER]], 2))
    assert [one.failure for one in asked] == ["", ""]


@pytest.mark.parametrize(
    ("connections", "failure"),
    [
        ([[LEAVE], [LEAVE]], "RemoteProtocolError: Server disconnected"),
        ([[CUT], [ANSWER]], "RemoteProtocolError: peer closed connection"),
        ([[WHOLE]], "the answer is no stream of events but application/json"),
    ],
)
def test_what_is_a_failure(connections: Sequence[Sequence[bytes]], failure: str) -> None:
    [asked] = asyncio.run(asked_of(connections, 1))
    assert asked.failure.startswith(failure)
