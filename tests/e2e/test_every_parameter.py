"""Every parameter of the API through the real `openai` client, on SmolLM2 over three worker processes."""

from __future__ import annotations

import json
import math
import re
from typing import Any, ClassVar

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.support.product import Server, eventually

SKY = [{"role": "user", "content": "Why is the sky blue?"}]
START = "The capital of France is"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Asking:
    """Short, greedy calls unless told otherwise."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.client = client

    def chat(self, *, messages: Any = SKY, max_tokens: int = 12, **fields: Any) -> ChatCompletion:
        answer = self.client.chat.completions.create(
            model="smollm2", messages=messages, **{"max_tokens": max_tokens, "temperature": 0, **fields}
        )
        assert isinstance(answer, ChatCompletion)
        return answer

    def complete(self, *, prompt: Any = START, max_tokens: int = 8, **fields: Any) -> Completion:
        call = {"max_tokens": max_tokens, "temperature": 0, **fields}
        answer = self.client.completions.create(model="smollm2", prompt=prompt, **call)
        assert isinstance(answer, Completion)
        return answer

    def stream_chat(self, **fields: Any) -> list[ChatCompletionChunk]:
        call: Any = {"model": "smollm2", "messages": SKY, "temperature": 0, "stream": True, **fields}
        return list(self.client.chat.completions.create(**call))

    def stream_completion(self, **fields: Any) -> list[Completion]:
        call: Any = {"model": "smollm2", "prompt": START, "temperature": 0, "stream": True, **fields}
        return list(self.client.completions.create(**call))

    def text(self, **fields: Any) -> str:
        return self.complete(**fields).choices[0].text


@pytest.fixture(scope="module")
def ask(client: openai.OpenAI) -> Asking:
    return Asking(client)


@pytest.fixture(scope="module")
def tokens(http: httpx.Client) -> Any:
    """Token ids of a text, as the server has them."""

    def of(text: str) -> list[int]:
        found: list[int] = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
        return found

    return of


class TestWhatIsSampled:
    def test_n_choices_are_different_and_the_first_is_that_of_one(self, ask: Asking) -> None:
        fields: dict[str, Any] = {"seed": 3, "temperature": 1.0, "max_tokens": 8}
        many = ask.chat(n=3, **fields)
        assert [choice.index for choice in many.choices] == [0, 1, 2]
        assert len({choice.message.content for choice in many.choices}) == 3
        assert many.choices[0].message.content == ask.chat(**fields).choices[0].message.content
        assert many.usage is not None
        assert many.usage.completion_tokens == 24

    def test_logit_bias_forces_and_forbids(self, ask: Asking, tokens: Any) -> None:
        (paris,) = tokens(" Paris")
        assert "Paris" not in ask.text(logit_bias={str(paris): -100})
        assert ask.text(logit_bias={str(paris): 100}, max_tokens=3) == " Paris Paris Paris"

    @pytest.mark.parametrize(
        "penalty",
        [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"extra_body": {"repetition_penalty": 1.5}}],
        ids=["presence", "frequency", "repetition"],
    )
    def test_penalties_end_a_repetition(self, ask: Asking, penalty: dict[str, Any]) -> None:
        prompt = "The cat sat. The cat sat. The cat sat. The cat sat. The cat"
        plain = ask.text(prompt=prompt, max_tokens=20)
        assert plain.count("cat") >= 4, "the model repeats itself, or this shows nothing"
        assert ask.text(prompt=prompt, max_tokens=20, **penalty).count("cat") <= 1

    @pytest.mark.parametrize(
        "field", [{"top_p": 0.0}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}], ids=str
    )
    def test_the_narrowest_sampling_is_greedy(self, ask: Asking, field: dict[str, Any]) -> None:
        assert ask.text(temperature=2.0, seed=5, **field) == ask.text()


class TestWhereItEnds:
    def test_a_stop_string_ends_the_text_and_no_part_of_it_leaks(self, ask: Asking) -> None:
        whole = ask.text(max_tokens=24)
        stop = whole[20:26]
        stream = ask.stream_completion(max_tokens=24, stop=[stop])
        pieces = [choice for chunk in stream for choice in chunk.choices]
        assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
        assert pieces[-1].finish_reason == "stop"

    def test_a_stop_token_ends_the_text(self, ask: Asking, tokens: Any) -> None:
        (paris,) = tokens(" Paris")
        (choice,) = ask.complete(extra_body={"stop_token_ids": [paris]}).choices
        assert (choice.finish_reason, "Paris" in choice.text) == ("stop", False)

    def test_min_tokens_and_ignore_eos_go_past_the_natural_end(self, ask: Asking) -> None:
        hello = [{"role": "user", "content": "Hi"}]
        natural = ask.chat(messages=hello, max_tokens=64)
        assert natural.usage is not None
        assert natural.choices[0].finish_reason == "stop"
        num_natural = natural.usage.completion_tokens
        longer = ask.chat(messages=hello, max_tokens=64, extra_body={"min_tokens": num_natural + 5})
        assert longer.usage is not None
        assert longer.usage.completion_tokens >= num_natural + 5
        endless = ask.chat(messages=hello, max_tokens=64, extra_body={"ignore_eos": True})
        assert endless.choices[0].finish_reason == "length"

    def test_max_completion_tokens_is_the_newer_name(self, ask: Asking) -> None:
        answer = ask.chat(max_completion_tokens=5)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5

    def test_a_request_out_of_time_says_so(self, ask: Asking) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            ask.chat(max_tokens=3000, extra_body={"timeout": 0.5, "ignore_eos": True})
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")


class TestLogprobs:
    def test_of_a_chat_answer(self, ask: Asking) -> None:
        (choice,) = ask.chat(logprobs=True, top_logprobs=3, max_tokens=6).choices
        assert choice.logprobs is not None
        content = choice.logprobs.content
        assert content is not None
        assert "".join(entry.token for entry in content) == choice.message.content
        for entry in content:
            assert len(entry.top_logprobs) == 3
            assert entry.top_logprobs[0].logprob == entry.logprob  # greedy: the likeliest, the same float
            assert bytes(entry.bytes or []) == entry.token.encode()
            assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-6

    def test_streamed_ones_are_those_of_the_whole_answer(self, ask: Asking) -> None:
        whole = ask.chat(logprobs=True, top_logprobs=2, max_tokens=10).choices[0].logprobs
        stream = ask.stream_chat(max_tokens=10, logprobs=True, top_logprobs=2)
        streamed = [
            entry
            for chunk in stream
            for choice in chunk.choices
            if choice.logprobs is not None
            for entry in choice.logprobs.content or []
        ]
        assert whole is not None
        assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in whole.content or []]

    def test_of_an_echoed_prompt_are_those_of_generating_it(self, ask: Asking) -> None:
        """What the model said, scored as a prompt: the same tokens and, here, the very same figures."""
        said = ask.complete(max_tokens=6, logprobs=2).choices[0]
        echoed = ask.complete(prompt=START + said.text, max_tokens=0, echo=True, logprobs=2).choices[0]
        assert echoed.text == START + said.text
        assert said.logprobs is not None
        assert echoed.logprobs is not None
        assert echoed.logprobs.token_logprobs is not None
        assert said.logprobs.token_logprobs is not None
        assert echoed.logprobs.token_logprobs[0] is None
        assert echoed.logprobs.tokens is not None
        assert "".join(echoed.logprobs.tokens) == echoed.text
        assert echoed.logprobs.token_logprobs[-6:] == said.logprobs.token_logprobs
        tops = echoed.logprobs.top_logprobs or []
        for token, logprob, top in list(zip(echoed.logprobs.tokens, echoed.logprobs.token_logprobs, tops, strict=True))[
            1:
        ]:
            assert top[token] == logprob

    def test_of_a_prompt_in_pieces_do_not_depend_on_company(self, ask: Asking) -> None:
        prompts = [START, "One, two, three, four", "def add(a, b):\n    return"]
        together = ask.complete(prompt=prompts, max_tokens=1, echo=True, logprobs=1)
        for prompt, choice in zip(prompts, together.choices, strict=True):
            alone = ask.complete(prompt=prompt, max_tokens=1, echo=True, logprobs=1).choices[0]
            assert choice.logprobs == alone.logprobs


class TestPrompts:
    def test_as_token_ids_and_in_lists(self, ask: Asking, tokens: Any) -> None:
        ids = tokens(START)
        text = ask.text()
        assert ask.text(prompt=ids) == text
        assert [choice.text for choice in ask.complete(prompt=[ids, ids]).choices] == [text, text]
        assert [choice.text for choice in ask.complete(prompt=[START, START]).choices] == [text, text]

    def test_a_suffix_is_refused_clearly(self, ask: Asking) -> None:
        with pytest.raises(openai.BadRequestError, match="suffix"):
            ask.complete(suffix="!")

    def test_tokenize_and_detokenize_are_inverse(self, http: httpx.Client) -> None:
        text = "naïve café 你好 🎉"
        ids = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}

    def test_half_a_character_never_goes_out(self, ask: Asking, tokens: Any) -> None:
        """The model is made to say an emoji whose bytes are several tokens."""
        ids = tokens("🎉")
        assert len(ids) > 1
        stream = ask.stream_completion(
            prompt="Party! ", max_tokens=12, extra_body={"structured_outputs": {"choice": ["🎉🎉🎉"]}}
        )
        pieces = [choice.text for chunk in stream for choice in chunk.choices]
        assert "".join(pieces) == "🎉🎉🎉"
        assert not any("\ufffd" in piece for piece in pieces)


class TestStructure:
    SCHEMA: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }

    @pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.5, "seed": 11}], ids=["greedy", "hot"])
    def test_a_json_schema_is_kept(self, ask: Asking, sampling: dict[str, Any]) -> None:
        answer = ask.chat(
            messages=[{"role": "user", "content": "Describe a person."}],
            max_tokens=80,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": self.SCHEMA}},
            **sampling,
        )
        person = json.loads(answer.choices[0].message.content or "")
        assert set(person) == {"name", "age"}
        assert isinstance(person["name"], str)
        assert isinstance(person["age"], int)
        assert answer.choices[0].finish_reason == "stop"

    def test_a_json_object_is_one(self, ask: Asking) -> None:
        answer = ask.chat(max_tokens=400, response_format={"type": "json_object"}).choices[0]
        if answer.finish_reason == "stop":  # a small model may go on and on
            assert isinstance(json.loads(answer.message.content or ""), dict)
        assert (answer.message.content or "").lstrip().startswith("{")

    def test_a_pattern_a_choice_and_a_grammar_are_kept(self, ask: Asking) -> None:
        date = ask.text(extra_body={"guided_regex": r"\d{4}-\d{2}-\d{2}"}, max_tokens=20, temperature=1.0, seed=1)
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date)
        colour = ask.text(extra_body={"guided_choice": ["red", "green", "blue"]}, max_tokens=20)
        assert colour in ("red", "green", "blue")
        sum_ = ask.text(extra_body={"guided_grammar": 'start: NUM " + " NUM\nNUM: /[0-9]{1,3}/'}, max_tokens=20)
        assert re.fullmatch(r"\d{1,3} \+ \d{1,3}", sum_)

    def test_what_does_not_compile_is_refused_by_name(self, ask: Asking) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask.text(extra_body={"guided_regex": "(unclosed"})
        assert caught.value.param == "guided_regex"

    def test_a_required_tool_is_called(self, ask: Asking) -> None:
        question = [{"role": "user", "content": "What will the weather be in Rome for three days?"}]
        fields: dict[str, Any] = {"messages": question, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 80}
        (choice,) = ask.chat(**fields).choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Paris", "Rome")
        stream = ask.stream_chat(**fields)
        deltas = [delta for chunk in stream for c in chunk.choices for delta in c.delta.tool_calls or []]
        assert (
            "".join((delta.function.arguments or "") for delta in deltas if delta.function) == call.function.arguments
        )
        told = [
            *question,
            {"role": "assistant", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        assert ask.chat(messages=told, tools=[WEATHER]).choices[0].message.content


class TestUsage:
    def test_every_chunk_when_asked(self, ask: Asking) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        stream = ask.stream_chat(max_tokens=4, stream_options=options)
        counts = [chunk.usage.completion_tokens for chunk in stream if chunk.usage is not None]
        assert counts == sorted(counts)
        assert (counts[0] <= 1, counts[-1]) == (True, 4)

    def test_a_conversation_of_ten_turns_computes_only_what_is_new(self, ask: Asking) -> None:
        """From the cached tokens in the usage: the history is in the KV cache of three processes."""
        messages: list[dict[str, str]] = []
        known = 0
        for turn in range(10):
            messages.append({"role": "user", "content": f"Tell me something about the number {turn}."})
            answer = ask.chat(messages=messages, max_tokens=10)
            assert answer.usage is not None
            details = answer.usage.prompt_tokens_details
            assert details is not None
            if turn:
                # Of the answer, the last token was never computed, and templates may end a turn otherwise than models.
                assert (details.cached_tokens or 0) >= known - 16
            known = answer.usage.prompt_tokens + answer.usage.completion_tokens
            messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})


def test_unknown_fields_are_ignored_and_wrong_types_named(ask: Asking) -> None:
    assert ask.text(extra_body={"no_such_field": {"a": 1}}) == ask.text(user="me")
    with pytest.raises(openai.BadRequestError) as caught:
        ask.text(extra_body={"min_tokens": "five"})
    assert caught.value.param == "min_tokens"


def test_request_ids_are_echoed(http: httpx.Client) -> None:
    response = http.get("/v1/models", headers={"x-request-id": "my-call-7"})
    assert response.headers["x-request-id"] == "my-call-7"


def test_nothing_is_left_over(server: Server, http: httpx.Client) -> None:
    def is_idle() -> bool:
        status = server.status()
        return (status.running_requests, status.waiting_requests, status.kv_used_tokens) == (0, 0, 0)

    assert eventually(is_idle, within_s=5)  # the status is a snapshot of a moment ago
