"""Asking a served model: one call in, its text out, streamed or whole."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import openai


class Question(NamedTuple):
    text: str
    max_tokens: int = 24
    temperature: float = 0.0
    seed: int = 0


QUESTIONS = (
    Question("Why is the sky blue?"),
    Question("Why is the sky blue?", temperature=0.9, seed=7),
    Question("Write a haiku about rain.", temperature=1.2, seed=1234, max_tokens=16),
    Question("Name three rivers. " * 30, max_tokens=12),
    Question("Hi", temperature=0.7, seed=99),
    Question("What is 2 + 2? Explain every step.", max_tokens=32),
)
"""Greedy and sampled, short and long: what must not disturb each other."""


class Answer(NamedTuple):
    text: str
    num_deltas: int
    finish_reason: str | None


def ask(client: openai.OpenAI, question: Question) -> Answer:
    """Stream an answer and put it together."""
    pieces: list[str] = []
    reason: str | None = None
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": question.text}],
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        seed=question.seed,
        stream=True,
    )
    for chunk in stream:
        assert reason is None, "nothing follows the finish reason"
        (choice,) = chunk.choices
        pieces.append(choice.delta.content or "")
        reason = choice.finish_reason
    return Answer("".join(pieces), sum(bool(piece) for piece in pieces), reason)


def ask_together(client: openai.OpenAI, questions: Sequence[Question]) -> list[Answer]:
    """Stream all answers at once."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: ask(client, question), questions))
