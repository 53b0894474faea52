"""guidellm against `butterfly serve`: two short benchmarks from end to end, on completions and on chat.

`python -m clients.check_guidellm`, or `make clients`, which installs what it needs. Nothing is asserted about speed,
only that every request succeeded, that the tokens counted are those asked for, and that guidellm found its times in
our streams.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from butterfly.models import open_model
from clients.running import MODEL, CheckError, run_check, run_client, served

STREAMS = 4
REQUESTS = 16
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 32
MAX_S = 600  # a stop for a machine that is not getting on
ROUTES = ("/v1/completions", "/v1/chat/completions")
_TABLES_FROM = "Run Summary Info"  # what guidellm prints before is its configuration


class _Request(msgspec.Struct):
    """A request that succeeded, as guidellm saw it. Times are milliseconds, but for the latency."""

    output: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    request_latency: float | None  # seconds
    time_to_first_token_ms: float | None
    inter_token_latency_ms: float | None


class _Requests(msgspec.Struct):
    successful: list[_Request]
    errored: list[msgspec.Raw]
    incomplete: list[msgspec.Raw]


class _Benchmark(msgspec.Struct):
    requests: _Requests


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


def check() -> None:
    """Serve, run both benchmarks, print guidellm's tables. Raises CheckError."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name, served() as url:
        folder = Path(name)
        open_model(MODEL).tokenizer.backend.save(str(folder / "tokenizer.json"))  # guidellm counts with it
        for route in ROUTES:
            print(f"guidellm: {route}, {REQUESTS} requests in {STREAMS} streams ...", flush=True)
            requests = _benchmark(url, route, folder)
            problems += [f"{route}: {problem}" for problem in _problems(route, requests)]
    if problems:
        raise CheckError("\n".join(problems))


def _benchmark(url: str, route: str, folder: Path) -> _Requests:
    report = folder / "report.json"
    printed = run_client(
        "guidellm",
        "run",
        *("--backend", f"kind=openai_http,target={url},model={MODEL},request_format={route}"),
        *("--profile", f"kind=concurrent,streams={STREAMS}"),
        *("--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--constraint", f"kind=max_duration,seconds={MAX_S}"),
        *("--tokenizer", f"kind=huggingface_auto,model={folder}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"),
        *("--output", f"kind=json,path={report}"),
        "--disable-console-interactive",
        folder=folder,
    )
    print(printed[max(printed.find(_TABLES_FROM), 0) :])
    (benchmark,) = msgspec.json.decode(report.read_bytes(), type=_Report).benchmarks
    return benchmark.requests


def _problems(route: str, requests: _Requests) -> list[str]:
    """What is wrong with the figures, one line each."""
    counts = (len(requests.successful), len(requests.errored), len(requests.incomplete))
    problems = (
        [] if counts == (REQUESTS, 0, 0) else [f"{counts} requests succeeded, failed, broke off; want all {REQUESTS}"]
    )
    for number, request in enumerate(requests.successful):
        problems += [f"request {number}: {problem}" for problem in _request_problems(route, request)]
    return problems


def _request_problems(route: str, request: _Request) -> list[str]:
    problems = []
    if not request.output:
        problems.append("no text")
    if request.output_tokens != OUTPUT_TOKENS:
        problems.append(f"{request.output_tokens} output tokens, want {OUTPUT_TOKENS}")
    prompt_tokens = request.prompt_tokens or 0
    # A chat's prompt is longer: the template adds its own tokens.
    if prompt_tokens < PROMPT_TOKENS or (route == "/v1/completions" and prompt_tokens != PROMPT_TOKENS):
        problems.append(f"{request.prompt_tokens} prompt tokens, want {PROMPT_TOKENS}")
    first_s, between_s = (request.time_to_first_token_ms or 0) / 1e3, (request.inter_token_latency_ms or 0) / 1e3
    latency_s = request.request_latency or 0
    if not (first_s > 0 and between_s > 0 and first_s + between_s < latency_s):
        problems.append(
            f"times make no sense: {first_s} s to the first token, {between_s} s between tokens, {latency_s} s in all"
        )
    return problems


if __name__ == "__main__":
    run_check(check, __doc__)
