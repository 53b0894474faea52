"""Whatever a caller sends, a desk answers it or drops it."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly.calls import (
    Answer,
    Call,
    DescribeTensors,
    FetchBlob,
    Knock,
    Refused,
    TensorDigests,
    decode_answer,
    encode,
)
from butterfly.communication import Caller
from butterfly.communication.admissions import Admissions
from butterfly.communication.services.desk import Desk
from butterfly.communication.services.rare_log import RareLog

GOOD = [
    encode(Knock(secret="s", name="n", protocol_version=1, version="v")),
    encode(DescribeTensors(names=("a", "b"))),
    encode(FetchBlob(digest="ab" * 32, start=0, num_bytes=10)),
]
damaged = st.tuples(st.sampled_from(GOOD), st.integers(0, 200), st.binary(max_size=3)).map(
    lambda case: case[0][: case[1]] + case[2] + case[0][case[1] + 1 :]
)
number = st.one_of(st.binary(min_size=8, max_size=8), st.binary(max_size=9))
frames = st.one_of(
    st.lists(st.binary(max_size=50), max_size=4),
    st.tuples(number, st.one_of(st.binary(max_size=100), st.sampled_from(GOOD), damaged)).map(list),
)


def desk(asked: list[tuple[Caller, Call]]) -> Desk:
    def answer(caller: Caller, call: Call) -> Answer:
        asked.append((caller, call))
        return TensorDigests(digests=())

    admissions = Admissions()
    admissions.admit("worker", "its key")
    return Desk(answer, admissions)


@settings(max_examples=400, deadline=None)
@given(frames=frames, key=st.sampled_from(["its key", "another key", ""]))
def test_any_frames_are_answered_or_dropped(frames: list[bytes], key: str) -> None:
    asked: list[tuple[Caller, Call]] = []
    reply = desk(asked).reply(key, "a host", frames)
    if len(frames) == 2 and len(frames[0]) == 8:
        assert reply is not None
        assert reply[0] == frames[0]
        assert isinstance(decode_answer(bytes(reply[1]), ""), TensorDigests if asked else Refused)
    else:
        assert reply is None
        assert not asked
    assert all(isinstance(call, Knock) for caller, call in asked if caller.public_key != "its key")


def test_the_log_is_rare_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    log = RareLog(logging.getLogger("rare"), 1.0, clock=lambda: now_s[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            log.warning("strange")
        now_s[0] = 1.5
        log.warning("strange again")
    assert [record.getMessage() for record in caplog.records] == [
        "strange",
        "strange again (and 4 more since the last line)",
    ]
