"""The lab's self-check: what its paths really give, measured by plain programs inside the nodes."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations

from benchmarks.lab.cluster import ROOT, Lab, Node
from benchmarks.lab.shapes import MTU_BYTES, PROBE_BYTES, LabError

PROBE = [sys.executable, "-m", "benchmarks.lab.probe"]
HEADER_BYTES = 66  # Ethernet 14, IPv4 20, TCP 32 with its time stamp
PROBE_S = 30.0
RATE_TOLERANCE = 0.1
RTT_TOLERANCE, RTT_TOLERANCE_S = 0.05, 0.0003  # waking the two programs and the switch takes time on any link


@dataclass(frozen=True)
class PathReport:
    """One path, from sender to receiver: what was asked of the links and what TCP measured.

    The asked rate is that of TCP's payload; the asked RTT is that of a small message and its answer.
    """

    sender: str
    receiver: str
    asked_rate_bits_per_s: float
    rate_bits_per_s: float
    asked_rtt_s: float
    median_rtt_s: float
    p99_rtt_s: float


def check(lab: Lab, rate_s: float = 0.5, rtt_s: float = 0.3) -> list[PathReport]:
    """Measure every path, one after another: `rate_s` seconds of bulk, `rtt_s` seconds of small messages on each."""
    return [check_path(lab, sender, receiver, rate_s, rtt_s) for sender, receiver in permutations(lab.nodes, 2)]


def check_path(lab: Lab, sender: str, receiver: str, rate_s: float = 0.5, rtt_s: float = 0.3) -> PathReport:
    """Measure one path. Raises LabError when it does not answer."""
    with probe_server(lab.nodes[receiver]) as port:
        arguments = [lab.nodes[receiver].address, str(port), f"--rate-s={rate_s}", f"--rtt-s={rtt_s}"]
        command = lab.nodes[sender].command([*PROBE, "measure", *arguments], pinned=False)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROBE_S, check=False)
    if done.returncode:
        raise LabError(f"{sender} does not reach {receiver}: {done.stderr.strip()}")
    measured = json.loads(done.stdout)
    there, back = lab.configs[sender], lab.configs[receiver]
    wire_rate = min(there.up.rate_bits_per_s, back.down.rate_bits_per_s)
    return PathReport(
        sender=sender,
        receiver=receiver,
        asked_rate_bits_per_s=wire_rate * (MTU_BYTES + 14 - HEADER_BYTES) / (MTU_BYTES + 14),
        rate_bits_per_s=measured["rate_bits_per_s"],
        asked_rtt_s=sum(
            link.crossing_s(PROBE_BYTES + HEADER_BYTES) for link in (there.up, back.down, back.up, there.down)
        )
        + (2 * lab.between_sites_s if there.site != back.site else 0.0),
        median_rtt_s=measured["median_rtt_s"],
        p99_rtt_s=measured["p99_rtt_s"],
    )


def complaints(reports: Sequence[PathReport]) -> list[str]:
    """What keeps the paths from being what was asked, one line each; none: results from this lab may be reported.

    The p99 of the RTT is not judged: it shows how the machine shares its cores, more than what the lab does.
    """
    found = []
    for path in reports:
        name = f"{path.sender} to {path.receiver}"
        if abs(path.rate_bits_per_s / path.asked_rate_bits_per_s - 1) > RATE_TOLERANCE:
            rates = f"{path.rate_bits_per_s / 1e6:.1f} Mb/s, not {path.asked_rate_bits_per_s / 1e6:.1f}"
            found.append(f"{name}: {rates}")
        if not path.asked_rtt_s <= path.median_rtt_s <= path.asked_rtt_s * (1 + RTT_TOLERANCE) + RTT_TOLERANCE_S:
            found.append(f"{name}: median RTT {path.median_rtt_s * 1e3:.2f} ms, not {path.asked_rtt_s * 1e3:.2f}")
    return found


@contextmanager
def probe_server(node: Node) -> Iterator[int]:
    """A server for `python -m benchmarks.lab.probe measure` in a node; yields its port."""
    with node.popen([*PROBE, "serve"], pinned=False, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            is_heard = select.select([server.stdout], (), (), PROBE_S)[0]
            if not is_heard or not (port := server.stdout.readline()):
                raise LabError(f"the probe did not start in {node.name}")
            yield int(port)
        finally:
            server.kill()
