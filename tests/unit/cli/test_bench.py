"""What `butterfly bench` prints, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import typer

from butterfly.cli.bench import bench, parse_id_range
from butterfly.cli.main import app
from butterfly.errors import ConfigError
from butterfly.loadgen import LoadReport
from tests.unit.loadgen.conftest import Servers
from tests.unit.loadgen.scripted import Script

KEY = "sk-ada-0123456789"


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUTTERFLY_API_KEY", raising=False)


@pytest.fixture
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


def _bench(url: str, *arguments: str) -> int:
    """Return the exit code."""
    sizes = ("--requests", "3", "--input-tokens", "8", "--output-tokens", "4")
    return app(["bench", url, *sizes, *arguments], standalone_mode=False) or 0


def test_json_is_one_object_and_nothing_else(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUTTERFLY_API_KEY", KEY)
    file = tmp_path / "report.json"
    code = _bench(servers.start(Script(key=KEY)), "--json", "--output", str(file), "-c", "2", "--slo-ttft", "60")
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert printed.out.count("\n") == 1
    assert file.read_text() == printed.out
    assert KEY not in printed.out
    report = msgspec.json.decode(printed.out, type=LoadReport)
    assert (report.num_completed, len(report.requests), report.spec.concurrency) == (3, 3, 2)
    assert report.goodput_requests_per_s == report.requests_per_s
    assert set(msgspec.json.decode(printed.out)) == {
        *("spec", "is_complete", "num_completed", "num_failed", "failures", "duration_s", "requests_per_s"),
        *("output_tokens_per_s", "total_tokens_per_s", "goodput_requests_per_s", "num_input_tokens"),
        *("num_output_tokens", "num_cached_tokens", "ttft_s", "tpot_s", "itl_s", "e2e_s", "notes", "requests"),
    }


def test_the_table_for_people(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(refused_fields=frozenset({"ignore_eos"}), statuses={3: 503})
    assert _bench(servers.start(script), "--seed", "5") == 0
    first, rates, heading, *rows, failure, note = capsys.readouterr().out.splitlines()
    assert first.startswith("2 of 3 requests to scripted in ")
    assert first.endswith(" s, 1 at a time (seed 5)")
    assert "requests/s, " in rates
    assert heading.split() == ["mean", "p50", "p90", "p99"]
    assert [row.split(", ms")[0] for row in rows] == [
        "time to the first token",
        "time per output token",
        "gap between chunks",
        "whole request",
    ]
    assert failure == "1 failed: HTTP 503: not now"
    assert note == "note: the server does not take ignore_eos; min_tokens is sent instead"


def test_nothing_answered_is_a_failure(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    statuses = dict.fromkeys(range(1, 9), 500)
    assert _bench(servers.start(Script(statuses=statuses))) == 1
    printed = capsys.readouterr()
    assert printed.err == "error: no request was answered: HTTP 500: not now\n"
    assert printed.out.startswith("0 of 3 requests")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("-c", "2", "--rate", "3"), "not both"),
        (("--rate", "0"), "more than 0"),
        (("--token-ids", "5"), "'5' is no range of token ids; write it like 100:20000"),
        (("--output", "/no/such/folder/x.json"), "cannot write /no/such/folder/x.json: .*; check --output"),
        (("--ca-file", "/no/such.pem"), "check --ca-file"),
        (("--api-key", "schlüssel"), "printable ASCII"),
        (("--shared-prefix", "9"), "0 to 8 tokens"),
        ((), r"no server answers at http://127\.0\.0\.1:1: .*check the address"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        _bench("http://127.0.0.1:1", *arguments)


def test_ranges_of_token_ids() -> None:
    assert parse_id_range("100:20000") == (100, 20_000)
    with pytest.raises(ConfigError):
        parse_id_range("a:b")


def test_the_command_does_not_grow_by_accident() -> None:
    single = typer.Typer(add_completion=False)
    single.command()(bench)
    parameters = typer.main.get_command(single).params

    assert len([parameter for parameter in parameters if parameter.param_type_name == "option"]) <= 19
    assert all(getattr(parameter, "help", None) for parameter in parameters)
