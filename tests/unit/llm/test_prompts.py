"""Prompts and conversations in the forms that people write them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest

from butterfly.errors import ContextLengthError, InvalidRequestError
from butterfly.llm.prompts import read_conversation, read_prompt, split_conversations, split_prompts
from tests.unit.llm.doubles import MAX_CONTEXT, tiny_model

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("prompts", "split"),
    [
        ("Hi", [("prompt", "Hi")]),
        ([1, 2], [("prompt", [1, 2])]),
        (["Hi", "Ho"], [("prompts[0]", "Hi"), ("prompts[1]", "Ho")]),
        (["Hi", [1]], [("prompts[0]", "Hi"), ("prompts[1]", [1])]),
        ([[1], [2, 3]], [("prompts[0]", [1]), ("prompts[1]", [2, 3])]),
        ((), []),
    ],
    ids=str,
)
def test_one_prompt_or_many(prompts: Any, split: list[tuple[str, Any]]) -> None:
    assert split_prompts(prompts) == split


@pytest.mark.parametrize("prompts", [None, 3, {"prompt": "Hi"}, b"Hi"], ids=str)
def test_what_is_no_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prompts: expected a text, token ids, or a list of them, got"):
        split_prompts(prompts)


def test_texts_and_token_ids_become_the_same() -> None:
    read = [read_prompt("prompt", prompt, tiny_model()) for prompt in ("Hé", [72, 195, 169], [*numpy.array([72])])]
    assert [prompt.token_ids for prompt in read] == [(72, 195, 169), (72, 195, 169), (72,)]
    assert [prompt.text for prompt in read] == ["Hé", None, None]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", r"prompts\[2\]: must have at least one token"),
        ([], r"prompts\[2\]: must have at least one token"),
        ([4096], r"prompts\[2\]: 4096 is not a token id; they go from 0 to 4095"),
        ([-1], r"prompts\[2\]: -1 is not a token id"),
        ([1, "a"], r"prompts\[2\]: expected a text or a list of token ids, got \[1, 'a'\]"),
        (7, r"prompts\[2\]: expected a text or a list of token ids, got 7"),
    ],
    ids=str,
)
def test_a_wrong_prompt_is_named(prompt: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        read_prompt("prompts[2]", prompt, tiny_model())
    assert caught.value.param == "prompts"


def test_a_prompt_that_fills_the_context_is_refused_with_the_figures() -> None:
    with pytest.raises(ContextLengthError, match="prompt: it has 64 tokens, but the context of 64 tokens"):
        read_prompt("prompt", "x" * MAX_CONTEXT, tiny_model())


def test_one_conversation_or_many() -> None:
    assert split_conversations(HELLO) == [("messages", HELLO)]
    assert split_conversations([HELLO, HELLO]) == [("messages[0]", HELLO), ("messages[1]", HELLO)]
    with pytest.raises(InvalidRequestError, match="messages: expected a list of messages"):
        split_conversations("Hi")  # type: ignore[arg-type]


def test_a_conversation_is_what_the_template_makes_of_it() -> None:
    talk: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    read = read_conversation("messages", talk, [{"type": "function"}], tiny_model())
    assert read.text == "[system]Be brief.[user]a\nb1>"  # as the HTTP API joins and renames
    assert bytes(read.token_ids).decode() == read.text


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], r"messages\[1\]: expected a list of at least one message"),
        ("Hi", r"messages\[1\]: expected a list of at least one message"),
        (["Hi"], r"messages\[1\]\[0\]: expected a dict with `role` and `content`, got 'Hi'"),
        ([{"content": "Hi"}], r"messages\[1\]\[0\]\.role: field required"),
        ([{"role": "boss", "content": "Hi"}], r"messages\[1\]\[0\]\.role: input should be"),
        ([{"role": "user", "content": 3}], r"messages\[1\]\[0\]\.content: input should be a valid string"),
        ([{"role": "user"}], r"messages\[0\]\.content is missing"),
    ],
    ids=str,
)
def test_a_wrong_message_is_named(messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        read_conversation("messages[1]", messages, None, tiny_model())


def test_a_model_without_a_template_cannot_chat() -> None:
    with pytest.raises(InvalidRequestError, match=r"has no chat template; use generate\(\)"):
        read_conversation("messages", HELLO, None, replace(tiny_model(), chat_template=None))
