from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.api import Choice, ChoiceEvent, StopFilter
from butterfly.errors import RequestFailedError, RequestTimeoutError
from butterfly.specs import FinishReason, Request, RequestOutput, SamplingSpec
from tests.unit.api.doubles import ByteTokenizer, scored


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


def test_a_stop_string_that_shall_stay() -> None:
    stop_filter = StopFilter(("END", "ND"), keeps_stop=True)

    assert stop_filter.push("the E") == ("the ", False)
    assert stop_filter.push("ND.") == ("END", True)


# -------------------------------------------------------------------------------- tokens of a choice

TOKENIZER = ByteTokenizer()
EOS = TOKENIZER.eos_id


def _request(*, min_tokens: int = 0, num_logprobs: int | None = 0, stop_token_ids: tuple[int, ...] = (EOS,)) -> Request:
    return Request(
        request_id="r-0",
        prompt_token_ids=(1, 2, 3),
        max_tokens=100,
        min_tokens=min_tokens,
        sampling=SamplingSpec(num_logprobs=num_logprobs),
        stop_token_ids=stop_token_ids,
    )


def _output(token_ids: list[int], finish_reason: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(
        request_id="r-0",
        token_ids=tuple(token_ids),
        num_prompt_tokens=3,
        num_output_tokens=0,
        finish_reason=finish_reason,
        logprobs=tuple(scored(token_id, 0) for token_id in token_ids),
    )


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def _shown(event: ChoiceEvent) -> tuple[str, str]:
    """The text of an event, and that of the tokens whose logprobs came with it."""
    return event.text, b"".join(TOKENIZER.token_bytes(token.logprobs.token_id) for token in event.tokens).decode()


def _feed(choice: Choice, text: str) -> list[tuple[str, str]]:
    """One output per token."""
    return [_shown(choice.advance(_output([token_id]))) for token_id in _ids(text)]


def test_logprobs_wait_for_text_that_a_stop_string_holds_back() -> None:
    choice = Choice(0, _request(), TOKENIZER.stream(), ("END",))

    assert _feed(choice, "aENd") == [("a", "a"), ("", ""), ("", ""), ("ENd", "ENd")]


def test_logprobs_of_a_stop_string_are_never_shown() -> None:
    choice = Choice(0, _request(), TOKENIZER.stream(), ("END",))

    assert _feed(choice, "aEN") == [("a", "a"), ("", ""), ("", "")]
    event = choice.advance(_output(_ids("D and more")))
    assert _shown(event) == ("", "")
    assert (event.finish_reason, event.num_tokens) == ("stop", 4)


def test_logprobs_of_the_parts_of_a_character_come_with_it() -> None:
    choice = Choice(0, _request(), TOKENIZER.stream())
    outputs = [_output([token_id]) for token_id in _ids("é!")]

    first, second, third = (choice.advance(output) for output in outputs)

    assert (first.text, first.tokens) == ("", ())
    assert (second.text, [token.offset for token in second.tokens]) == ("é", [0, 0])
    assert (third.text, [token.offset for token in third.tokens]) == ("!", [1])


def test_half_a_character_at_the_end_and_the_stop_token_are_shown_at_the_end() -> None:
    choice = Choice(0, _request(), TOKENIZER.stream())

    event = choice.advance(_output([*_ids("a🦋")[:-1], EOS], "stop"))

    assert event.text == "a\ufffd"
    assert [token.logprobs.token_id for token in event.tokens] == [*_ids("a🦋")[:-1], EOS]
    assert [token.is_silent for token in event.tokens] == [False] * 4 + [True]


def test_stop_strings_are_only_looked_for_after_min_tokens() -> None:
    choice = Choice(0, _request(min_tokens=4), TOKENIZER.stream(), ("ab",))

    assert _feed(choice, "ababa") == [("a", "a"), ("b", "b"), ("a", "a"), ("b", "b"), ("", "")]
    assert choice.advance(_output(_ids("b"))).finish_reason == "stop"


def test_without_logprobs_events_have_none() -> None:
    choice = Choice(0, _request(num_logprobs=None), TOKENIZER.stream())

    assert choice.advance(_output(_ids("ab"), "length")) == ChoiceEvent(0, "ab", "length", 2)


@pytest.mark.parametrize(("silent", "text"), [(None, "a"), ((), "a<"), ((EOS, *_ids("<")), "a")])
def test_silent_tokens_have_no_text(silent: tuple[int, ...] | None, text: str) -> None:
    request = _request(stop_token_ids=(*_ids("<"), EOS))
    choice = Choice(0, request, TOKENIZER.stream(), silent_token_ids=silent)

    assert choice.advance(_output(_ids("a<"), "stop")).text == text


def test_only_the_prompt() -> None:
    choice = Choice(0, _request(), TOKENIZER.stream(), is_prompt_only=True)
    logprobs = (scored(2, 0), scored(3, 0))
    output = RequestOutput(
        request_id="r-0",
        token_ids=(7,),
        num_prompt_tokens=3,
        num_output_tokens=1,
        finish_reason="stop",
        prompt_logprobs=logprobs,
    )

    assert choice.advance(output) == ChoiceEvent(0, "", "length", 0, prompt_logprobs=logprobs)


@pytest.mark.parametrize(("timed_out", "kind"), [(False, RequestFailedError), (True, RequestTimeoutError)])
def test_a_failed_output_raises(timed_out: bool, kind: type[RequestFailedError]) -> None:
    output = RequestOutput(
        request_id="r-0",
        token_ids=(),
        num_prompt_tokens=3,
        num_output_tokens=0,
        finish_reason="error",
        error="too late",
        timed_out=timed_out,
    )

    with pytest.raises(RequestFailedError, match="too late") as caught:
        Choice(0, _request(), TOKENIZER.stream()).advance(output)
    assert type(caught.value) is kind


@given(
    text=st.text("abé🦋", max_size=10),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    stops=_stops,
    min_tokens=st.integers(0, 6),
)
def test_text_and_logprobs_do_not_depend_on_the_cut(
    text: str, cuts: list[int], stops: tuple[str, ...], min_tokens: int
) -> None:
    def run(sizes: list[int]) -> tuple[str, list[tuple[int, int]]]:
        choice = Choice(0, _request(min_tokens=min_tokens), TOKENIZER.stream(), stops)
        ids, out, shown = [*_ids(text), EOS], "", []
        while ids:
            size, sizes = sizes[0], sizes[1:] + sizes[:1]
            event = choice.advance(_output(ids[:size], None if len(ids) > size else "stop"))
            ids = ids[size:]
            out += event.text
            shown += [(token.logprobs.token_id, token.offset) for token in event.tokens]
            # Nothing is told before its text, and no text without its tokens.
            assert all(token.offset < len(out) or event.finish_reason for token in event.tokens)
            if event.finish_reason is not None:
                break
        return out, shown

    out, shown = run(cuts)

    assert (out, shown) == run([len(text.encode()) + 1])
    tokens = [token_id for token_id, _ in shown]
    assert tokens == [*_ids(text), EOS][: len(tokens)]
    assert TOKENIZER.decode(tokens) == out
