from __future__ import annotations

from typing import Any

import pytest

from butterfly.api import choice_seed
from tests.unit.api.conftest import Service
from tests.unit.api.doubles import MAX_CONTEXT, ByteTokenizer, Script


def test_whole_answer(service: Service, tokenizer: ByteTokenizer) -> None:
    answer = service.openai.completions.create(model="org/tiny", prompt="Once")

    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    request = service.engine.submitted[0]
    assert request.prompt_token_ids == tuple(tokenizer.encode("Once"))  # with the special tokens
    assert request.max_tokens == 16


def test_the_default_limit_shrinks_to_the_room_that_is_left(service: Service) -> None:
    service.openai.completions.create(model="org/tiny", prompt=[1] * (MAX_CONTEXT - 3))

    assert service.engine.submitted[0].max_tokens == 3


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([5, 6, 7], [(5, 6, 7)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
    ],
)
def test_token_ids_as_prompt(service: Service, prompt: Any, expected: list[tuple[int, ...]]) -> None:
    answer = service.openai.completions.create(model="org/tiny", prompt=prompt)

    assert [request.prompt_token_ids for request in service.engine.submitted] == expected
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))


def test_prompts_times_choices(service: Service, tokenizer: ByteTokenizer) -> None:
    service.engine.script_of = lambda request: Script(
        tokenizer.decode(request.prompt_token_ids) + str(request.sampling.seed % 2)
    )

    answer = service.openai.completions.create(model="org/tiny", prompt=["a", "b"], n=2, seed=4)

    # The choices of a prompt stand side by side, and have the seeds they would have alone.
    assert [choice.text for choice in answer.choices] == ["a0", "a1", "b0", "b1"]
    seeds = [request.sampling.seed for request in service.engine.submitted]
    assert seeds == [4, choice_seed(4, 1)] * 2
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4


def test_stream(service: Service) -> None:
    chunks = list(
        service.openai.completions.create(
            model="org/tiny", prompt="Once", stream=True, stream_options={"include_usage": True}
        )
    )

    texts = [chunk.choices[0].text for chunk in chunks[:-1]]
    assert texts == ["H", "e", "l", "l", "o", ""]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


def test_a_long_prompt_is_encoded_off_the_event_loop_with_the_same_result(
    service: Service, tokenizer: ByteTokenizer
) -> None:
    response = service.http.post("/v1/completions", json={"model": "org/tiny", "prompt": "x" * 20_000})

    assert response.status_code == 400
    assert "20001 tokens" in response.json()["error"]["message"]
