"""Butterfly beside its bounds and, with --peers, beside llama.cpp. Progress on stderr; last comes one JSON object.

`python -m benchmarks.bench --list` names the scenarios; `--results FOLDER` keeps page, plots and JSON.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec

from benchmarks.hardware import Machine, best_of, measure_machine, num_cores
from benchmarks.lab import unavailable
from benchmarks.peers.llama_cpp import BuildError, LlamaCpp, build
from benchmarks.record import Record, ScenarioRecord
from benchmarks.report import summary, write_results
from benchmarks.running import Arms, needs_lab, rebounded, run_scenario
from benchmarks.scenarios import MODELS, Scenario, all_scenarios, select
from butterfly.specs import Spec

ROUNDS, QUICK_ROUNDS = 3, 2
EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143


class Options(Spec, frozen=True):
    peers: bool
    quick: bool
    is_listing: bool
    only: tuple[str, ...]
    models: tuple[str, ...]
    rounds: int | None
    results: Path | None
    theme: str
    serve_options: tuple[str, ...]

    @property
    def num_rounds(self) -> int:
        return self.rounds or (QUICK_ROUNDS if self.quick else ROUNDS)


def parse(argv: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--peers", action="store_true", help="measure llama.cpp too, in turn; builds it on first use")
    parser.add_argument("--quick", action="store_true", help="a few scenarios, fewer requests, two rounds")
    parser.add_argument(
        "--list", dest="is_listing", action="store_true", help="name the scenarios that would run, and end"
    )
    parser.add_argument(
        "--only", metavar="PATTERN", nargs="+", default=(), help="scenarios whose name has this in it (* and ? allowed)"
    )
    parser.add_argument("--models", nargs="+", default=(), choices=MODELS)
    parser.add_argument("--rounds", type=int, help=f"measurements of each load; {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--results", metavar="FOLDER", type=Path, help="write page, plots and JSON here")
    parser.add_argument("--theme", default="", help="first part of the files' names; peers or lab if not given")
    parser.add_argument(
        "--serve-options", metavar="WORDS", default="", help="more options of butterfly serve: --serve-options='...'"
    )
    options = parser.parse_args(argv)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    named = vars(options) | {"theme": options.theme or ("peers" if options.peers else "lab")}
    words = tuple(shlex.split(options.serve_options))
    return Options(**named | {"only": tuple(options.only), "models": tuple(options.models), "serve_options": words})


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def chosen(options: Options) -> tuple[Scenario, ...]:
    return select(all_scenarios(num_cores()), patterns=options.only, models=options.models, quick=options.quick)


def find_peer() -> LlamaCpp:
    """Raises BuildError."""
    said = ""

    def show(what: str, fraction: float) -> None:
        nonlocal said
        if (line := f"{what}, {fraction:.0%}") != said:
            said = line
            tell(line)

    return build(show)


def run_all(options: Options, scenarios: Sequence[Scenario], machine: Machine, peer: LlamaCpp | None) -> Record:
    """Run one after another; what is done is written to the results folder at once, without plots."""
    record = Record(
        benchmark=options.theme,
        created=datetime.date.today().isoformat(),
        machine=machine,
        rounds=options.num_rounds,
        quick=options.quick,
        serve_options=options.serve_options,
    )
    no_lab = unavailable()
    for number, scenario in enumerate(scenarios):
        tell(f"--- {scenario.name} ({number + 1} of {len(scenarios)})")
        if no_lab and needs_lab(scenario):
            tell(f"    left out: {no_lab}")
            done = ScenarioRecord(scenario=scenario, state="left out", reason=no_lab)
        else:
            arms = Arms(peer, options.serve_options)
            done = run_scenario(scenario, machine, options.num_rounds, arms, lambda text: tell(f"    {text}"))
        record = msgspec.structs.replace(record, scenarios=(*record.scenarios, done))
        if options.results:
            write_results(record, options.results, plots=False)
    return record


def with_better_bounds(record: Record) -> Record:
    """Measure the machine once more: bounds are made of the best that it has shown."""
    tell("measuring this machine once more")
    machine = best_of(record.machine, measure_machine([rates.threads for rates in record.machine.rates]))
    return msgspec.structs.replace(
        record, machine=machine, scenarios=tuple(rebounded(done, machine) for done in record.scenarios)
    )


def terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM ends as Ctrl-C does: everything on the way out is torn down."""
    raise SystemExit(EXIT_TERMINATED)


def main() -> int:
    options = parse()
    scenarios = chosen(options)
    if options.is_listing or not scenarios:
        print("\n".join(scenario.name for scenario in scenarios) or "no scenario matches")
        return 0 if scenarios else EXIT_FAILED
    signal.signal(signal.SIGTERM, terminate)
    try:
        peer = find_peer() if options.peers else None
        tell("measuring this machine's memory and cores")
        machine = measure_machine(sorted({scenario.threads for scenario in scenarios}))
        record = with_better_bounds(run_all(options, scenarios, machine, peer))
        if options.results:
            tell(f"written: {write_results(record, options.results)}")
    except (BuildError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(summary(record))
    print(msgspec.json.encode(record).decode())
    return EXIT_FAILED if any(scenario.state == "failed" for scenario in record.scenarios) else 0


if __name__ == "__main__":
    raise SystemExit(main())
