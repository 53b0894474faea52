"""From bytes and the times they came to the record of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from butterfly.errors import ProtocolError
from butterfly.loadgen.answers import AnswerReader
from butterfly.loadgen.chunks import error_text
from butterfly.loadgen.spec import RequestRecord
from butterfly.loadgen.sse import EventParser

STREAM = b': hello\r\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: x\ndata:b\n\n\n\ndata: [DONE]\n\ndata: cut'
EVENTS = [b'{"a":\n1}', b"b", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_do_not_depend_on_how_bytes_are_cut(size: int) -> None:
    parser = EventParser()
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(ProtocolError, match="longer than"):
        EventParser().feed(b"x" * (2 << 20))


def read(*timed: tuple[float, Any], done: bool = True) -> RequestRecord:
    """The record of a request that was sent at 10 s in a run that began at 8 s."""
    reader = AnswerReader()
    for now_s, chunk in timed:
        reader.feed(b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n", now_s)
    if done:
        reader.feed(b"data: [DONE]\n\n", timed[-1][0] + 5)
    return reader.record(3, 10.0, 8.0, 20)


def text(content: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": content, "finish_reason": reason}]}


def delta(reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": reason}]}


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    details = None if cached is None else {"cached_tokens": cached}
    return {
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details},
    }


def test_the_times_of_a_completion() -> None:
    record = read(
        (10.5, text("a")), (10.75, text("b")), (11.5, text("c")), (11.5, text("", "length")), (12, usage(9, 3))
    )
    assert record == RequestRecord(
        index=3,
        started_s=2.0,
        finish_reason="length",
        ttft_s=0.5,
        tpot_s=0.5,
        e2e_s=1.5,
        num_input_tokens=9,
        num_output_tokens=3,
        chunk_times_s=(0.5, 0.75, 1.5),
    )


def test_several_tokens_in_a_chunk_are_counted_by_usage() -> None:
    record = read((11, text("ab")), (12, text("cd", "stop")), (12, usage(9, 5, cached=4)))
    assert (record.num_output_tokens, record.tpot_s, record.num_cached_tokens) == (5, 0.25, 4)


def test_without_usage_chunks_are_counted() -> None:
    record = read((11, text("a")), (12, text("b")), (12, text("", "length")))
    assert (record.num_input_tokens, record.num_output_tokens, record.tpot_s) == (20, 2, 1.0)


def test_a_role_is_no_output_but_reasoning_is() -> None:
    first = delta(role="assistant", content="")
    record = read((10.1, first), (11, delta(reasoning_content="hm")), (12, delta(content="a")), (13, delta("stop")))
    assert (record.ttft_s, record.chunk_times_s, record.e2e_s) == (1.0, (1.0, 2.0), 3.0)


def test_an_output_without_text_has_times_too() -> None:
    record = read((11, text("", "length")), (11, usage(9, 1)))
    assert (record.failure, record.ttft_s, record.tpot_s, record.e2e_s) == ("", 1.0, None, 1.0)


@pytest.mark.parametrize(
    ("chunks", "done", "failure"),
    [
        ([text("a")], False, "the stream broke off before its end"),
        ([usage(9, 0)], True, "the answer is empty"),
        (
            [text("a"), {"error": {"message": "no\nmemory", "code": 500}}],
            True,
            "error in the stream: no memory",
        ),
        ([text("a"), b"{", text("", "stop")], True, "the stream cannot be read: Input data was truncated"),
        ([text("a"), {"choices": 3}], True, "the stream cannot be read: Expected `array`, got `int` - at `$.choices`"),
    ],
)
def test_broken_streams(chunks: list[Any], done: bool, failure: str) -> None:
    assert read(*((11.0, chunk) for chunk in chunks), done=done).failure == failure


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no", "code": 1}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"object": "error", "message": "no"}', "no"),
        (b'{"detail": [{"msg": "no"}]}', "[{'msg': 'no'}]"),
        (b"<html>\n no", "<html> no"),
        (b"\xff", "\ufffd"),
        (b"{}", "{}"),
    ],
)
def test_errors_of_all_shapes(body: bytes, message: str) -> None:
    assert error_text(body) == message
