"""Hurt a serving cluster again and again, and see whether a token is lost. Cut cables need root.

Progress on stderr; the last line on stdout is one JSON object. `--results FOLDER` keeps page and JSON.
"""

from __future__ import annotations

import argparse
import datetime
import random
import signal
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.bench import EXIT_FAILED, EXIT_INTERRUPTED, tell, terminate
from benchmarks.faults.record import FAULTS, FaultKind, FaultRecord, FaultsRecord, middle, worst
from benchmarks.faults.report import summary, write_results
from benchmarks.faults.running import Cluster, cluster, make_prompts, make_round, run_round
from benchmarks.hardware import measure_machine
from benchmarks.lab import unavailable
from benchmarks.processes import ServerFailedError

_NUM_PROMPTS = 12
_MAX_RESTARTS = 5  # of the whole cluster, when it did not come back


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=int, default=48, help="of each stream")
    parser.add_argument("--kinds", nargs="+", choices=list(FAULTS), help="all that this machine allows, if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", metavar="FOLDER", type=Path, help="write page and JSON here")
    options = parser.parse_args()
    reason = unavailable()
    if reason and "cut" in (options.kinds or ()):
        print(f"error: no cable can be cut here: {reason}", file=sys.stderr)
        return EXIT_FAILED
    kinds: list[FaultKind] = options.kinds or [kind for kind in FAULTS if not (reason and kind == "cut")]
    signal.signal(signal.SIGTERM, terminate)
    run = _Run(options, kinds, emulated=not reason)
    try:
        run.half(has_spare=False, count=options.faults // 2)
        run.half(has_spare=True, count=options.faults - options.faults // 2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        print(summary(run.record))
        print(msgspec.json.encode(run.record).decode())
    return EXIT_FAILED if run.has_losses else 0


class _Run:
    """All faults so far."""

    def __init__(self, options: argparse.Namespace, kinds: list[FaultKind], *, emulated: bool) -> None:
        self._options, self._kinds, self._emulated = options, kinds, emulated
        self._chance = random.Random(options.seed)
        self._prompts = make_prompts(_NUM_PROMPTS)
        self._num_restarts = 0
        today = datetime.date.today().isoformat()
        self.record = FaultsRecord(created=today, machine=measure_machine([1]), model=options.model, faults=())

    @property
    def has_losses(self) -> bool:
        return self._num_restarts > 0 or any(fault.num_flips or fault.num_errors for fault in self.record.faults)

    def half(self, *, has_spare: bool, count: int) -> None:
        """So many faults; a cluster that does not come back is told of, and started anew."""
        left = count
        while left > 0:
            tell(f"starting three workers{' and a spare' if has_spare else ''}")
            tokens = self._options.max_tokens
            with cluster(self._options.model, spare=has_spare, emulated=self._emulated, max_tokens=tokens) as on:
                try:
                    left = self._strike(on, left, count)
                except ServerFailedError as error:
                    self._num_restarts += 1
                    tell(f"the cluster did not come back: {error}")
                    if self._num_restarts > _MAX_RESTARTS:
                        raise

    def _strike(self, on: Cluster, left: int, count: int) -> int:
        started_s = time.monotonic()
        expected = [on.undisturbed(prompt) for prompt in self._prompts]
        alone_s = (time.monotonic() - started_s) / len(self._prompts)
        while left > 0:
            wanted = make_round(self._chance, self._kinds, len(self._prompts))
            fault = run_round(on, wanted, self._prompts, expected, alone_s)
            left -= 1
            tell(_line(count - left, count, fault))
            self.record = msgspec.structs.replace(self.record, faults=(*self.record.faults, fault))
            if self._options.results:
                write_results(self.record, self._options.results)
            on.wait_until_whole()
        return left


def _line(number: int, count: int, fault: FaultRecord) -> str:
    def of(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    verdict = "ok" if not fault.num_flips and not fault.num_errors else f"LOST: {fault.note}"
    split = " + ".join(of(part) for part in (fault.detection_s, fault.planning_s, fault.loading_s, fault.prefill_s))
    return (
        f"    {number}/{count} {fault.kind} {fault.worker} in {fault.phase}, {fault.num_streams} streams: "
        f"pause {of(middle(fault.pauses_s))} s, worst {of(worst(fault.pauses_s))} s ({split}), "
        f"later {of(fault.later_pause_s)} s, {verdict}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
