"""`butterfly bench URL`: how fast an OpenAI-compatible server answers."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from butterfly.cli.console import console, errors, print_error
from butterfly.cli.options import Temperature
from butterfly.cli.status import client_key, trusting
from butterfly.errors import ConfigError
from butterfly.loadgen import LoadReport, LoadSpec, Quantiles, run_load

_REFRESH_S = 0.2  # drawing takes time from the loop that measures
_SHOWN_FAILURES = 5
_NOTHING_ANSWERED = 1
_INTERRUPTED = 128 + signal.SIGINT

Url = Annotated[str, typer.Argument(help="Address of a running server.")]
Model = Annotated[str, typer.Option("--model", help="The model to ask for; the server's first if not given.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask /v1/chat/completions, in words.")]
Requests = Annotated[int, typer.Option("--requests", "-n", min=1, help="Requests to measure.")]
Warmup = Annotated[
    int | None, typer.Option("--warmup", min=0, help="Requests before them; as many as run at a time, if not given.")
]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", "-c", min=1, help="Requests at a time; 1 if no --rate is given.")
]
Rate = Annotated[
    float | None, typer.Option("--rate", help="Instead: requests per second, arriving at random (Poisson).")
]
InputTokens = Annotated[int, typer.Option("--input-tokens", min=1, help="Length of each prompt.")]
OutputTokens = Annotated[int, typer.Option("--output-tokens", min=1, help="Length of each output.")]
SharedPrefix = Annotated[
    int, typer.Option("--shared-prefix", min=0, help="Tokens that begin all prompts; the others are random.")
]
TokenIds = Annotated[
    str, typer.Option("--token-ids", metavar="FIRST:LAST", help="Prompts are drawn from these ids, LAST excluded.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of prompts and arrivals; drawn when not given.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds that a request may take.")]
SloTtft = Annotated[
    float | None, typer.Option("--slo-ttft", help="Seconds to the first token; goodput counts requests as fast as it.")
]
SloTpot = Annotated[float | None, typer.Option("--slo-tpot", help="Seconds per output token, likewise.")]
Key = Annotated[str, typer.Option("--api-key", metavar="KEY", help="The server's key; BUTTERFLY_API_KEY if not given.")]
CaFile = Annotated[
    Path | None, typer.Option("--ca-file", help="Certificate (PEM) to trust for https: the server's or its CA's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON, with every request.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write that JSON to a file, too.")]


def bench(
    url: Url = "http://127.0.0.1:8000",
    model: Model = "",
    chat: Chat = False,
    requests: Requests = 16,
    warmup: Warmup = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    input_tokens: InputTokens = 128,
    output_tokens: OutputTokens = 64,
    shared_prefix: SharedPrefix = 0,
    token_ids: TokenIds = "100:20000",
    temperature: Temperature = 0.0,
    seed: Seed = None,
    timeout: Timeout = 600.0,
    slo_ttft: SloTtft = None,
    slo_tpot: SloTpot = None,
    api_key: Key = "",
    ca_file: CaFile = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Measure a running server: time to the first token, per token, throughput. Ctrl-C shows what there is by then."""
    spec = LoadSpec(
        url=url,
        model=model,
        chat=chat,
        num_requests=requests,
        num_warmup=warmup,
        concurrency=concurrency,
        rate_per_s=rate,
        num_input_tokens=input_tokens,
        num_output_tokens=output_tokens,
        num_shared_tokens=shared_prefix,
        token_ids=parse_id_range(token_ids),
        temperature=temperature,
        seed=seed,
        timeout_s=timeout,
        slo_ttft_s=slo_ttft,
        slo_tpot_s=slo_tpot,
        api_key=client_key(api_key, os.environ.get("BUTTERFLY_API_KEY", "")),
    )
    check_writable(output)
    report = asyncio.run(measure(spec, None if ca_file is None else trusting(ca_file)))
    tell(report, as_json=as_json, output=output)
    if not report.is_complete:
        raise typer.Exit(_INTERRUPTED)
    if not report.num_completed:
        print_error(f"no request was answered: {next(iter(report.failures))}")
        raise typer.Exit(_NOTHING_ANSWERED)


def parse_id_range(text: str) -> tuple[int, int]:
    """'100:20000' -> (100, 20000). Raises ConfigError."""
    first, _, last = text.partition(":")
    try:
        return int(first), int(last)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no range of token ids; write it like 100:20000") from error


def check_writable(output: Path | None) -> None:
    """Raises ConfigError before the run rather than after it."""
    if output is None:
        return
    try:
        output.open("ab").close()
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}; check --output") from error


async def measure(spec: LoadSpec, trust: ssl.SSLContext | None) -> LoadReport:
    """Run the load until it is done or Ctrl-C comes. Raises ConfigError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        with progress_bar() as show:
            return await run_load(spec, show, stop=stop, trust=trust)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Drawn from the measuring loop itself, now and then: a thread of its own would disturb the times."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        auto_refresh=False,
        disable=not errors.is_terminal,
    ) as progress:
        task = progress.add_task("requests", total=None)
        drawn_s = 0.0

        def show(num_ended: int, num_requests: int) -> None:
            nonlocal drawn_s
            now_s = time.monotonic()
            is_due = now_s - drawn_s > _REFRESH_S
            progress.update(task, completed=num_ended, total=num_requests, refresh=is_due)
            drawn_s = now_s if is_due else drawn_s

        yield show


def tell(report: LoadReport, *, as_json: bool, output: Path | None) -> None:
    """Print the report, and write it where it is wanted. Raises ConfigError."""
    encoded = msgspec.json.encode(report).decode()
    if as_json:
        console.print(encoded, markup=False, soft_wrap=True)
    else:
        print_report(report)
    if output is not None:
        try:
            output.write_text(encoded + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}; check --output") from error


def print_report(report: LoadReport) -> None:
    """The figures for people: times in milliseconds."""
    spec = report.spec
    load = f"{spec.rate_per_s:g} requests per second" if spec.rate_per_s else f"{spec.concurrency or 1} at a time"
    num_requests = report.num_completed + report.num_failed
    console.print(
        f"{report.num_completed} of {num_requests} requests to {spec.model or spec.url} in {report.duration_s:.2f} s, "
        f"{load} (seed {spec.seed})" + ("" if report.is_complete else f"; stopped before {spec.num_requests}"),
        markup=False,
    )
    goodput = report.goodput_requests_per_s
    console.print(
        f"{report.requests_per_s:.2f} requests/s, {report.output_tokens_per_s:.1f} output tokens/s, "
        f"{report.total_tokens_per_s:.1f} tokens/s in all"
        + (f", goodput {goodput:.2f} requests/s" if goodput is not None else "")
    )
    if report.num_completed:
        console.print(times_table(report))
    for reason, count in list(report.failures.items())[:_SHOWN_FAILURES]:
        console.print(f"{count} failed: {reason}", markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def times_table(report: LoadReport) -> Table:
    table = Table("", box=None, pad_edge=False)
    for heading in ("mean", "p50", "p90", "p99"):
        table.add_column(heading, justify="right")
    rows: tuple[tuple[str, Quantiles | None], ...] = (
        ("time to the first token, ms", report.ttft_s),
        ("time per output token, ms", report.tpot_s),
        ("gap between chunks, ms", report.itl_s),
        ("whole request, ms", report.e2e_s),
    )
    for name, times in rows:
        if times is not None:
            table.add_row(name, *(f"{value_s * 1e3:.2f}" for value_s in (times.mean, times.p50, times.p90, times.p99)))
    return table
