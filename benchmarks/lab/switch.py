"""The switch: a process that moves frames between the nodes' TAP devices at the times of the star model.

Started by Lab with one JSON argument. It ends when the control socket closes, which also happens when the process that
made the lab dies in whatever way, and then removes all that the run left in the system.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from benchmarks.lab.remains import remove_run
from benchmarks.lab.shapes import MAX_CONTROL_BYTES, MTU_BYTES, Link, SwitchLoad
from benchmarks.lab.star import Star

FRAME_BYTES = MTU_BYTES + 18  # with the Ethernet header and a VLAN tag
READ_FRAMES = 16  # from one node before the others and what is due get their turn
EARLY_S = 0.0001  # wake so much before a frame is due and poll the rest: a sleeping core takes about as long to wake
LONGEST_WAKING_S = 0.00015  # beyond it, it was not the waking that took the time
WAKINGS = 8  # that the mean goes over
SPARSE_FRAMES = 4  # with more on their way nobody waits for one of them, and polling would take a whole core


def forward(star: Star, taps: Sequence[int], control: socket.socket) -> None:
    """Move frames and answer the lab until the control socket closes.

    A frame has come some time before a sleeping switch sees it. How long this core takes to wake is learnt from the
    timeouts, whose ends are known, and taken off.
    """
    nodes = {tap: node for node, tap in enumerate(taps)}
    readers: list[int | socket.socket] = [*taps, control]
    clock = time.monotonic
    waking_s = 0.0
    while True:
        early_s = EARLY_S if star.num_waiting <= SPARSE_FRAMES else 0.0
        timeout_s = max(0.0, star.wake_s() - early_s - clock()) if star.num_waiting else None
        slept_s = clock()
        readable = select.select(readers, (), (), timeout_s)[0]
        woke_s = clock()
        if timeout_s and not readable:
            lateness_s = min(woke_s - slept_s - timeout_s, LONGEST_WAKING_S)
            waking_s += (lateness_s - waking_s) / WAKINGS
        arrived_s = max(slept_s, woke_s - waking_s)
        for ready in readable:
            if isinstance(ready, socket.socket):
                request = control.recv(MAX_CONTROL_BYTES)
                if not request:
                    return
                control.send(json.dumps(answer(star, json.loads(request))).encode())
            else:
                read_frames(star, nodes[ready], ready, arrived_s)
        for receiver, frame in star.deliveries(clock()):
            write_frame(taps[receiver], frame)


def read_frames(star: Star, node: int, tap: int, arrived_s: float) -> None:
    with suppress(BlockingIOError):
        for _ in range(READ_FRAMES):
            star.accept(arrived_s, node, os.read(tap, FRAME_BYTES))


def write_frame(tap: int, frame: bytes) -> None:
    # Where the node took its interface down or has no memory left, the frame is lost, as on a real network.
    with suppress(OSError):
        os.write(tap, frame)


def answer(star: Star, request: Mapping[str, Any]) -> Any:
    """Do what the lab asks; the answer says that it is done."""
    now_s = time.monotonic()
    match request["do"]:
        case "reshape":
            up, down = (None if link is None else Link(*link) for link in (request["up"], request["down"]))
            star.reshape(now_s, request["node"], up, down)
        case "cut" | "restore":
            star.set_cut(now_s, request["node"], request["do"] == "cut")
        case "traffic":
            return [[*pair, *asdict(traffic).values()] for pair, traffic in star.traffic().items()]
        case "load":
            num_frames = sum(traffic.num_frames for traffic in star.traffic().values())
            load = SwitchLoad(time.process_time(), num_frames, star.num_late_frames, star.worst_lateness_s)
            return list(asdict(load).values())
    return None


def run_ahead_of_the_nodes() -> None:
    """Be scheduled before the nodes' own processes: a frame that waits for a core is a frame that comes late."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:  # real-time scheduling is off in this container
        os.setpriority(os.PRIO_PROCESS, 0, -20)


def main() -> None:
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    try:
        links = [(Link(*up), Link(*down)) for up, down in settings["links"]]
        star = Star(links, settings["sites"], settings["between_sites_s"])
        run_ahead_of_the_nodes()
        gc.disable()  # frames and heap entries make no cycles
        control.send(b"ready")
        forward(star, settings["taps"], control)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        remove_run(settings["run"])


if __name__ == "__main__":
    main()
