"""Whole runs against a server that plays a script."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from butterfly.errors import ConfigError
from butterfly.loadgen import LoadReport, LoadSpec, run_load
from butterfly.loadgen.spec import check
from tests.unit.loadgen.conftest import Servers
from tests.unit.loadgen.scripted import OVERHEAD_TOKENS, TOKENS_PER_WORD, Script

NUM_PROBES = 1  # when nothing is refused
SPEC = LoadSpec(url="", num_requests=6, num_warmup=1, num_input_tokens=12, num_output_tokens=5, seed=7)


def run(url: str, **changes: object) -> LoadReport:
    spec = msgspec.structs.replace(SPEC, url=url, **changes)
    return asyncio.run(run_load(spec, lambda num_ended, num_requests: None))


# ----------------------------------------------------------------------------------------- whole runs


def test_a_closed_loop_asks_what_the_spec_says(servers: Servers) -> None:
    script = Script()
    seen: list[tuple[int, int]] = []
    spec = msgspec.structs.replace(SPEC, url=servers.start(script) + "/v1/", concurrency=3)

    report = asyncio.run(run_load(spec, lambda *progress: seen.append(progress)))

    assert (report.is_complete, report.num_completed, report.num_failed, report.notes) == (True, 6, 0, ())
    assert (report.num_input_tokens, report.num_output_tokens) == (6 * 12, 6 * 5)
    assert seen == [(n, 6) for n in range(1, 7)]
    assert script.most_open <= 3
    assert report.spec.model == "scripted"
    probe, *others = script.bodies
    assert (len(script.bodies), probe["max_tokens"]) == (NUM_PROBES + 1 + 6, 2)
    assert all(body["max_tokens"] == 5 and body["ignore_eos"] and "min_tokens" not in body for body in others)
    assert all(len(prompt) == 12 and min(prompt) >= 100 and max(prompt) < 20_000 for prompt in script.prompts)
    assert len({tuple(prompt) for prompt in script.prompts}) == len(script.prompts)


def test_records_hold_what_the_figures_are_made_of(servers: Servers) -> None:
    report = run(servers.start(Script()))
    assert [record.index for record in report.requests] == list(range(6))
    for record in report.requests:
        assert len(record.chunk_times_s) == 5
        assert list(record.chunk_times_s) == sorted(record.chunk_times_s)
        assert record.ttft_s == record.chunk_times_s[0]
        assert record.e2e_s is not None
        assert record.e2e_s >= record.chunk_times_s[-1]
        assert record.started_s + record.e2e_s <= report.duration_s
    assert msgspec.json.decode(msgspec.json.encode(report), type=LoadReport) == report


def test_an_open_loop_sends_every_request(servers: Servers) -> None:
    report = run(servers.start(Script()), rate_per_s=500.0)
    assert (report.num_completed, report.num_failed) == (6, 0)
    assert all(record.lag_s >= 0 for record in report.requests)
    started_s = [record.started_s for record in report.requests]
    assert started_s == sorted(started_s)


def test_the_same_seed_asks_the_same_and_none_asks_anew(servers: Servers) -> None:
    first, second, third, fourth = scripts = [Script() for _ in range(4)]
    seeds = [
        run(servers.start(script), seed=seed).spec.seed
        for script, seed in zip(scripts, (7, 7, None, None), strict=True)
    ]
    assert sorted(map(tuple, first.prompts)) == sorted(map(tuple, second.prompts))
    assert len({*map(tuple, first.prompts), *map(tuple, third.prompts), *map(tuple, fourth.prompts)}) == 3 * 8
    assert None not in seeds


def test_a_shared_prefix_begins_every_prompt(servers: Servers) -> None:
    script = Script()
    run(servers.start(script), num_shared_tokens=8)
    assert len({tuple(prompt[:8]) for prompt in script.prompts}) == 1
    assert len({tuple(prompt[8:]) for prompt in script.prompts}) == len(script.prompts)


def test_tokens_bundled_in_chunks_are_counted_by_usage(servers: Servers) -> None:
    report = run(servers.start(Script(tokens_per_chunk=2)))
    assert report.num_output_tokens == 6 * 5
    assert all(len(record.chunk_times_s) == 3 for record in report.requests)


# -------------------------------------------------------------------------------- what servers do not take


def test_a_chat_is_in_words_of_the_right_length(servers: Servers) -> None:
    script = Script()
    report = run(servers.start(script), chat=True, num_input_tokens=25)
    assert report.notes == ()
    assert report.num_input_tokens == 6 * 25
    assert len(script.bodies[-1]["messages"][0]["content"].split()) == (25 - OVERHEAD_TOKENS) / TOKENS_PER_WORD
    assert all(len(record.chunk_times_s) == 5 for record in report.requests), "the role is no output"


def test_what_is_refused_is_done_without(servers: Servers) -> None:
    fields = frozenset({"ignore_eos", "min_tokens", "stream_options"})
    script = Script(refused_fields=fields, takes_token_ids=False, tells_usage=False)
    report = run(servers.start(script))
    assert report.num_completed == 6
    assert [note.split(";")[0].split("(")[0].strip() for note in report.notes] == [
        "the server does not take ignore_eos",
        "the server does not take min_tokens",
        "the server does not take stream_options",
        "prompts are words, as token ids were refused",
    ]
    assert not fields & script.bodies[-1].keys()
    assert report.num_output_tokens == 6 * 5, "chunks are counted where there is no usage"


def test_min_tokens_replace_ignore_eos(servers: Servers) -> None:
    script = Script(refused_fields=frozenset({"ignore_eos"}))
    run(servers.start(script))
    assert script.bodies[-1]["min_tokens"] == 5


# --------------------------------------------------------------------------------------------- failures


def test_failures_are_counted_by_reason(servers: Servers) -> None:
    script = Script(statuses={3: 503, 5: 503}, broken_calls=frozenset({4}))
    report = run(servers.start(script))
    assert (report.num_completed, report.num_failed) == (3, 3)
    assert report.failures == {"HTTP 503: not now": 2, "the stream broke off before its end": 1}
    assert report.num_output_tokens == 3 * 5
    assert [record.index for record in report.requests if record.failure] == [1, 2, 3]


def test_a_deadline_fails_a_request(servers: Servers) -> None:
    report = run(servers.start(Script(hanging_from=NUM_PROBES)), num_requests=1, num_warmup=0, timeout_s=0.2)
    assert report.failures == {"no end within 0.2 s": 1}
    assert (report.num_completed, report.ttft_s, report.output_tokens_per_s) == (0, None, 0.0)


def test_a_stop_reports_what_there_is_and_closes_connections(servers: Servers) -> None:
    script = Script(hanging_from=NUM_PROBES + 1 + 2)
    spec = msgspec.structs.replace(SPEC, url=servers.start(script), num_requests=20)

    async def stopped() -> LoadReport:
        stop = asyncio.Event()
        return await run_load(spec, lambda num_ended, _: stop.set() if num_ended == 2 else None, stop=stop)

    report = asyncio.run(stopped())
    assert (report.is_complete, report.num_completed, report.num_failed) == (False, 2, 0)
    assert len(report.requests) == 2


@pytest.mark.parametrize(
    ("script", "changes", "problem"),
    [
        (Script(key="secret"), {}, "wants an API key: give --api-key"),
        (Script(key="secret"), {"api_key": "wrong"}, "does not accept this API key: check --api-key"),
        (Script(statuses={0: 503}), {}, "does not answer a first request: HTTP 503: not now"),
        (Script(refused_fields=frozenset({"temperature"})), {}, "a first request: HTTP 400: .* temperature"),
        (Script(broken_calls=frozenset({0})), {}, "a first request: the stream broke off"),
    ],
)
def test_what_makes_a_run_senseless(servers: Servers, script: Script, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(servers.start(script), **changes)


def test_a_key_is_sent_and_not_reported(servers: Servers) -> None:
    report = run(servers.start(Script(key="secret")), api_key="secret")
    assert report.num_completed == 6
    assert b"secret" not in msgspec.json.encode(report)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nowhere", "http://127.0.0.1:port"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(ConfigError, match=url) as refused:
        run(url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"concurrency": 2, "rate_per_s": 1.0}, "not both"),
        ({"concurrency": 0}, "at least 1"),
        ({"rate_per_s": 0.0}, "more than 0 per second"),
        ({"rate_per_s": float("inf")}, "more than 0 per second"),
        ({"num_requests": 0}, "at least one request"),
        ({"num_warmup": -1}, "warm-up"),
        ({"num_output_tokens": 0}, "at least one token"),
        ({"num_shared_tokens": 13}, "0 to 12 tokens"),
        ({"token_ids": (5, 5)}, "from 5 up to 5"),
        ({"timeout_s": 0.0}, "timeout"),
    ],
)
def test_specs_that_cannot_be(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check(msgspec.structs.replace(SPEC, **changes))
