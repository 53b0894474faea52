"""The planner on emulated clusters: predicted beside measured, our plan beside simple policies. Needs root.

Progress on stderr; the last line on stdout is one JSON object. `--results FOLDER` keeps page, plot and JSON.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from benchmarks.bench import EXIT_FAILED, EXIT_INTERRUPTED, tell, terminate
from benchmarks.hardware import measure_machine
from benchmarks.lab import unavailable
from benchmarks.planning.clusters import CLUSTERS
from benchmarks.planning.record import PlanningRecord
from benchmarks.planning.report import accuracy, write_results
from benchmarks.planning.running import run_cluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", nargs="+", default=(), help="clusters whose name has this in it")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each placement")
    parser.add_argument("--results", metavar="FOLDER", type=Path, help="write page, plot and JSON here")
    options = parser.parse_args()
    if reason := unavailable():
        print(f"error: {reason}", file=sys.stderr)
        return EXIT_FAILED
    signal.signal(signal.SIGTERM, terminate)
    chosen = [
        cluster
        for cluster in CLUSTERS
        if not options.only or any(fnmatch(cluster.name, f"*{pattern}*") for pattern in options.only)
    ]
    try:
        record = PlanningRecord(
            created=datetime.date.today().isoformat(),
            machine=measure_machine([1]),
            rounds=options.rounds,
            clusters=(),
        )
        for number, cluster in enumerate(chosen):
            tell(f"--- {cluster.name} ({number + 1} of {len(chosen)}): {cluster.what}")
            done = run_cluster(cluster, options.rounds, lambda text: tell(f"    {text}"))
            record = msgspec.structs.replace(record, clusters=(*record.clusters, done))
            if options.results:
                write_results(record, options.results)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(accuracy(record))
    print(msgspec.json.encode(record).decode())
    return EXIT_FAILED if any(one.failure for one in record.clusters) else 0


if __name__ == "__main__":
    raise SystemExit(main())
