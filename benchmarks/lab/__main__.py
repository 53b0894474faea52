"""Make an emulated cluster, measure it and say what it gives: `python -m benchmarks.lab --rate-mbit 100 --rtt-ms 10`.

The last line is one JSON object. The exit status is 1 where the paths are not what was asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from benchmarks.lab import Lab, Link, NodeConfig, PathReport, check, complaints, unavailable


def row(path: PathReport) -> str:
    rates = f"{path.asked_rate_bits_per_s / 1e6:9.1f} {path.rate_bits_per_s / 1e6:9.1f}"
    rtts = f"{path.asked_rtt_s * 1e3:8.2f} {path.median_rtt_s * 1e3:8.2f} {path.p99_rtt_s * 1e3:8.2f}"
    return f"{path.sender + ' -> ' + path.receiver:<16} {rates}   {rtts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2, help="how many")
    parser.add_argument("--rate-mbit", type=float, default=1000.0, help="of every link, in Mb/s")
    parser.add_argument("--rtt-ms", type=float, default=0.5, help="of every path: each link gets a quarter of it")
    options = parser.parse_args()
    if reason := unavailable():
        sys.exit(reason)
    link = Link(options.rate_mbit * 1e6, options.rtt_ms / 4e3)
    with Lab([NodeConfig(f"node{number}", link, link) for number in range(options.nodes)]) as lab:
        reports = check(lab)
        load = lab.switch_load()
    print(f"{'path':<16} {'Mb/s asked':>9} {'got':>8}   {'RTT ms':>8} {'median':>8} {'p99':>8}")
    for report in reports:
        print(row(report))
    wrong = complaints(reports)
    print("\n".join(wrong) or "as asked for")
    result = {"paths": [asdict(report) for report in reports], "switch": asdict(load), "complaints": wrong}
    print(json.dumps({"benchmark": "lab", **result}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
