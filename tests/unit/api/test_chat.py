"""Chat completions through the real openai client."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam

from butterfly.api import choice_seed
from tests.unit.api.conftest import Service
from tests.unit.api.doubles import MAX_CONTEXT, ByteTokenizer, Script

ASK: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hi"}]
PROMPT_TEXT = "[user]Hi\n[assistant]"
EMOJI = "naïve 🦋 déjà vu 👩‍👩‍👧‍👦!"


def _stream(service: Service, **options: object) -> list[ChatCompletionChunk]:
    body = {"model": "org/tiny", "messages": ASK, "stream": True, **options}
    return list(service.openai.chat.completions.create(**body))  # type: ignore[call-overload]


def _text(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index)


def test_whole_answer(service: Service, tokenizer: ByteTokenizer) -> None:
    answer = service.openai.chat.completions.create(model="org/tiny", messages=ASK)

    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "org/tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    num_prompt_tokens = len(tokenizer.encode(PROMPT_TEXT, add_special_tokens=False))
    assert answer.usage is not None
    # The stop token was generated, so it counts, but it has no text.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt_tokens, 6)
    assert answer.usage.total_tokens == num_prompt_tokens + 6


def test_the_engine_gets_what_the_client_asked_for(service: Service, tokenizer: ByteTokenizer) -> None:
    service.openai.chat.completions.create(
        model="tiny",
        messages=ASK,
        temperature=0.5,
        top_p=0.75,
        seed=7,
        max_tokens=9,
        extra_body={"top_k": 40, "min_p": 0.125},
    )

    request = service.engine.submitted[0]
    assert request.prompt_token_ids == tuple(tokenizer.encode(PROMPT_TEXT, add_special_tokens=False))
    assert request.max_tokens == 9
    assert request.stop_token_ids == (tokenizer.eos_id,)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.75, 40, 0.125)
    assert sampling.seed == 7


def test_defaults_are_openais(service: Service) -> None:
    for _ in range(2):
        service.openai.chat.completions.create(model="org/tiny", messages=ASK)

    first, second = service.engine.submitted
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.top_k) == (1.0, 1.0, 0)
    assert first.sampling.seed != second.sampling.seed
    assert first.max_tokens == MAX_CONTEXT - len(first.prompt_token_ids)


def test_stream_begins_with_the_role_and_ends_with_the_reason(service: Service) -> None:
    chunks = _stream(service)

    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert _text(chunks) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage_ends_with_an_empty_chunk(service: Service) -> None:
    chunks = _stream(service, stream_options={"include_usage": True})

    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 6
    assert usage.total_tokens == usage.prompt_tokens + 6
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_with_usage_every_other_chunk_says_null(service: Service) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = service.http.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK, **options})

    events = response.text.split("\n\n")[:-2]
    usages = [json.loads(event.removeprefix("data: "))["usage"] for event in events]
    assert usages[:-1] == [None] * (len(events) - 1)
    assert usages[-1]["completion_tokens"] == 6


def test_stream_on_the_wire(service: Service) -> None:
    response = service.http.post("/v1/chat/completions", json={"model": "org/tiny", "messages": ASK, "stream": True})

    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


@pytest.mark.parametrize("tokens_per_output", [1, 3])
def test_no_half_character_goes_out(service: Service, tokens_per_output: int) -> None:
    service.engine.script_of = lambda request: Script(EMOJI, tokens_per_output=tokens_per_output)

    chunks = _stream(service)

    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == EMOJI
    assert not any("\ufffd" in piece for piece in pieces)
    assert any("🦋" in piece for piece in pieces)


def test_a_character_cut_off_by_the_limit_shows_once_at_the_end(service: Service) -> None:
    service.engine.script_of = lambda request: Script("ab🦋")

    answer = service.openai.chat.completions.create(model="org/tiny", messages=ASK, max_tokens=4)

    assert answer.choices[0].message.content == "ab\ufffd"
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens_per_output", [1, 2, 50])
def test_a_stop_string_over_several_tokens_does_not_leak(
    service: Service, stream: bool, tokens_per_output: int
) -> None:
    service.engine.script_of = lambda request: Script(
        "one, END-two END. three", tokens_per_output=tokens_per_output, has_eos=False
    )
    stop = ["END.", "never"]

    if stream:
        chunks = _stream(service, stop=stop)
        text, reason = _text(chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = service.openai.chat.completions.create(model="org/tiny", messages=ASK, stop=stop).choices[0]
        text, reason = choice.message.content or "", choice.finish_reason

    assert text == "one, END-two "
    assert reason == "stop"
    assert service.engine.aborted == [service.engine.submitted[0].request_id]


def test_usage_counts_tokens_up_to_the_stop_string(service: Service) -> None:
    service.engine.script_of = lambda request: Script("abcdefgh", tokens_per_output=4)

    answer = service.openai.chat.completions.create(model="org/tiny", messages=ASK, stop="f")

    assert answer.choices[0].message.content == "abcde"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_text_held_back_for_a_stop_string_comes_at_the_end(service: Service) -> None:
    service.engine.script_of = lambda request: Script("it is an EN")

    assert _text(_stream(service, stop="END")) == "it is an EN"


def test_several_choices_have_seeds_of_their_own(service: Service) -> None:
    def script(request: object) -> Script:
        return Script(f"answer {len(service.engine.submitted)}")

    service.engine.script_of = script

    answer = service.openai.chat.completions.create(model="org/tiny", messages=ASK, n=2, seed=5)

    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.message.content for choice in answer.choices] == ["answer 1", "answer 2"]
    assert [request.sampling.seed for request in service.engine.submitted] == [5, choice_seed(5, 1)]
    assert answer.usage is not None
    prompt_length = len(service.engine.submitted[0].prompt_token_ids)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_length, 18)


def test_several_choices_in_one_stream(service: Service) -> None:
    service.engine.script_of = lambda request: Script(f"answer {len(service.engine.submitted)}")

    chunks = _stream(service, n=2, stream_options={"include_usage": True})

    assert [_text(chunks, index) for index in (0, 1)] == ["answer 1", "answer 2"]
    for index in (0, 1):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert own[0].delta.role == "assistant"
        assert own[-1].finish_reason == "stop"


def test_ignore_eos_goes_on_past_the_end(service: Service) -> None:
    answer = service.openai.chat.completions.create(
        model="org/tiny", messages=ASK, max_tokens=8, extra_body={"ignore_eos": True}
    )

    assert service.engine.submitted[0].stop_token_ids == ()
    assert answer.choices[0].message.content == "HelloHe"  # the special token in between has no text
    assert answer.choices[0].finish_reason == "length"


def test_text_parts_and_the_developer_role(service: Service, tokenizer: ByteTokenizer) -> None:
    service.openai.chat.completions.create(
        model="org/tiny",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    )

    prompt = tokenizer.decode(service.engine.submitted[0].prompt_token_ids)
    assert prompt == "[system]Be brief.\n[user]a\nb\n[assistant]"


def test_max_completion_tokens_wins(service: Service) -> None:
    service.openai.chat.completions.create(model="org/tiny", messages=ASK, max_tokens=9, max_completion_tokens=3)

    assert service.engine.submitted[0].max_tokens == 3
