"""The real `openai` client against SmolLM2 over three worker processes."""

from __future__ import annotations

import httpx
import openai
import pytest

from butterfly.monitoring.metrics import METRICS
from tests.e2e.asking import QUESTIONS, Answer, Question, ask, ask_together
from tests.support.product import Server, eventually

SKY = Question("Why is the sky blue?")


@pytest.fixture(scope="module")
def alone(client: openai.OpenAI) -> list[Answer]:
    """What each question is answered when nobody else asks."""
    return [ask(client, question) for question in QUESTIONS]


def test_a_streamed_chat_answer_is_sensible(client: openai.OpenAI) -> None:
    answer = ask(client, SKY)
    assert answer.finish_reason == "length"
    assert answer.num_deltas > 12  # it came in pieces
    assert "sky" in answer.text.lower()


def test_a_model_that_stops_says_so(client: openai.OpenAI) -> None:
    answer = ask(client, Question("Hi", max_tokens=64))
    assert answer.finish_reason == "stop"
    assert answer.text.strip()


@pytest.mark.parametrize("question", [SKY, Question("Tell me a story.", 12, temperature=0.8, seed=42)])
def test_a_whole_answer_equals_the_streamed_one(client: openai.OpenAI, question: Question) -> None:
    whole = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": question.text}],
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        seed=question.seed,
    )
    streamed = ask(client, question)
    (choice,) = whole.choices
    assert (choice.message.role, choice.message.content) == ("assistant", streamed.text)
    assert choice.finish_reason == streamed.finish_reason
    assert whole.usage is not None
    assert whole.usage.completion_tokens == question.max_tokens
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + question.max_tokens


def test_seeds_decide_what_is_sampled(client: openai.OpenAI) -> None:
    first, again, other = (
        ask(client, Question("Tell me a story.", 10, temperature=1.0, seed=seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.text != other.text


def test_the_usage_of_a_stream_comes_last(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=4,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 4


def test_completions_continue_a_text(client: openai.OpenAI) -> None:
    call = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0.0}
    whole = client.completions.create(**call)  # type: ignore[call-overload]
    streamed = client.completions.create(**call, stream=True)  # type: ignore[call-overload]
    assert "Paris" in whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def test_the_model_is_listed_and_answers_to_its_names(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id
    answer = client.chat.completions.create(
        model=model.id, messages=[{"role": "user", "content": "Hi"}], max_tokens=2, temperature=0
    )
    assert answer.model == model.id


def test_company_does_not_change_a_single_token(client: openai.OpenAI, alone: list[Answer]) -> None:
    assert ask_together(client, QUESTIONS) == alone


def test_the_plain_loop_gives_the_same_tokens(alone: list[Answer]) -> None:
    """One step in flight at a time, against one per stage."""
    with Server("--slots", "1").wait_ready() as plain, plain.client() as client:
        assert ask_together(client, QUESTIONS) == alone
        plain.interrupt()
        assert plain.wait_gone() == 130  # Ctrl-C while idle
        assert plain.complaints() == ""


def test_a_client_that_leaves_frees_its_request(client: openai.OpenAI, server: Server) -> None:
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Count to a thousand."}],
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    assert eventually(lambda: server.status().running_requests == 1, within_s=5)
    stream.close()
    assert eventually(lambda: server.status().running_requests == 0, within_s=5)
    assert server.status().waiting_requests == 0


def test_operators_see_health_readiness_and_metrics(http: httpx.Client, client: openai.OpenAI) -> None:
    ask(client, Question("Hi", max_tokens=4))
    assert http.get("/health").json() == {"status": "ok"}
    ready = http.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "phase": "ready", "detail": ""})
    exposition = http.get("/metrics").text
    assert [metric.name for metric in METRICS if f"\n{metric.name}" not in exposition] == []
    assert 'butterfly_stage_compute_seconds_count{worker="worker-2"}' in exposition


def test_a_prompt_beyond_the_context_is_refused_with_the_figures(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"prompt has 5\d\d\d tokens.*context of .* is 4096") as caught:
        client.completions.create(model="smollm2", prompt="word " * 5000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"


def test_hostile_figures_do_no_harm(client: openai.OpenAI, server: Server) -> None:
    """What fits no integer is refused; a temperature that would overflow is as good as greedy."""
    with pytest.raises(openai.BadRequestError, match="top_k"):
        client.completions.create(model="smollm2", prompt="Hi", extra_body={"top_k": 2**70})
    texts = [
        client.completions.create(model="smollm2", prompt="The sky is", max_tokens=6, temperature=cold, top_p=0.9)
        for cold in (1e-310, 0)
    ]
    assert texts[0].choices[0].text == texts[1].choices[0].text
    assert server.status().phase == "ready"


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b'{"model": "smollm2", "messages": [', 400, "JSON"),
        (b'{"model": "smollm2", "messages": "hello"}', 400, "messages"),
        (
            b'{"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": "ten"}',
            400,
            "max_tokens",
        ),
        (b'{"model": "gpt-9", "messages": [{"role": "user", "content": "Hi"}]}', 404, "gpt-9"),
    ],
    ids=["malformed", "wrong kind", "wrong type", "unknown model"],
)
def test_bad_calls_get_an_openai_error(http: httpx.Client, body: bytes, status: int, named: str) -> None:
    response = http.post("/v1/chat/completions", content=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert "Traceback" not in response.text


def test_an_unknown_model_is_what_the_client_calls_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "Hi"}])
