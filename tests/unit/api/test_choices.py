from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.api.choices import StopFilter


def _run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    out = ""
    for piece in pieces:
        text, is_stopped = stop_filter.push(piece)
        out += text
        if is_stopped:
            return out, True
    return out + stop_filter.flush(), False


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        ((), "abc", ("abc", False)),
        (("b",), "abc", ("a", True)),
        (("abd",), "ababd!", ("ab", True)),
        (("abc", "b"), "abc", ("a", True)),  # the one that is complete first
        (("bc", "abc"), "xabc", ("x", True)),  # complete together: the longest
        (("aab",), "aaab", ("a", True)),
        (("xyz",), "xy", ("xy", False)),
    ],
)
def test_stop_strings(stops: tuple[str, ...], text: str, expected: tuple[str, bool]) -> None:
    assert _run(stops, list(text)) == expected
    assert _run(stops, [text]) == expected


def test_nothing_waits_that_cannot_become_a_stop_string() -> None:
    stop_filter = StopFilter(("END",))

    assert stop_filter.push("the E") == ("the ", False)
    assert stop_filter.push("agle") == ("Eagle", False)


def _reference(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """Look at every prefix: the first that ends with a stop string decides."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


_texts = st.text("ab", max_size=12)
_stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple)


@given(stops=_stops, pieces=st.lists(_texts, max_size=6))
def test_the_cut_into_pieces_does_not_matter(stops: tuple[str, ...], pieces: list[str]) -> None:
    assert _run(stops, pieces) == _reference(stops, "".join(pieces))
