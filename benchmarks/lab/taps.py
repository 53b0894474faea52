"""The nodes' network interfaces: TAP devices whose far end is a file descriptor of the switch.

Against veth pairs with packet sockets: nothing is left in the root namespace, no offload needs turning off, and the
interfaces vanish with the descriptor.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lab.shapes import MTU_BYTES, LabError, Link
from benchmarks.lab.star import mac_address

PACING_S = 0.01  # of sending that a node may be ahead of its link, to make up for a sender that was late
CONGESTION_CONTROL = "cubic"  # Linux's own default, whatever this machine is set to
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def node_address(node: int) -> str:
    return f"10.77.{(node + 1) >> 8}.{(node + 1) & 255}"


def open_tap(name: str) -> int:
    """Make a TAP device and return its descriptor: one frame for each read or write, never blocking."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except BaseException:
        os.close(tap)
        raise
    return tap


def run_ip(commands: Sequence[str], namespace: str | None = None) -> None:
    """Run commands of `ip`, one a line. Raises LabError at the first that fails."""
    _run_batch("ip", commands, namespace)


def pace(namespace: str, up: Link) -> None:
    """Let a node's kernel send no faster than its link, for more than PACING_S.

    The switch alone would do for the times. But a real machine's TCP waits for its own interface and loses nothing
    there; without pacing it would fill the switch's queue until that drops.
    """
    burst_bytes = max(2 * (MTU_BYTES + 14), round(up.rate_bits_per_s / 8 * PACING_S))
    rate, limit_bytes = round(up.rate_bits_per_s), 10 * burst_bytes
    bucket = f"tbf rate {rate} burst {burst_bytes} limit {limit_bytes}"
    _run_batch("tc", [f"qdisc replace dev eth0 root {bucket}"], namespace)


def _run_batch(tool: str, commands: Sequence[str], namespace: str | None) -> None:
    where = [] if namespace is None else ["-netns", namespace]
    done = subprocess.run(
        [tool, *where, "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"{tool}: {done.stderr.strip()} (of: {'; '.join(commands)})")


def _congestion_control() -> str:
    """The option of a route that sets it, where this kernel has it."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return f"congctl {CONGESTION_CONTROL}" if CONGESTION_CONTROL in available else ""


def set_up_node(node: int, up: Link, tap_name: str, namespace: str, num_nodes: int) -> None:
    """Make the namespace and put the TAP device into it as eth0, with every other node's address known."""
    run_ip([f"netns add {namespace}", f"link set {tap_name} netns {namespace} name eth0"])
    neighbours = [
        f"neigh replace {node_address(other)} lladdr {mac_address(other)} dev eth0 nud permanent"
        for other in range(num_nodes)
        if other != node
    ]
    run_ip(
        [
            "link set lo up",
            f"link set eth0 address {mac_address(node)} mtu {MTU_BYTES} addrgenmode none up",
            f"addr add {node_address(node)}/16 broadcast + dev eth0",
            f"route replace 10.77.0.0/16 dev eth0 src {node_address(node)} {_congestion_control()}",
            "route add 224.0.0.0/4 dev eth0",
            *neighbours,
        ],
        namespace,
    )
    pace(namespace, up)
