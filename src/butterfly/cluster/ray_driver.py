"""The process that talks to Ray for a RayLauncher: `python -m butterfly.cluster.ray_driver ADDRESS START_TIMEOUT_S`.

It is a process of its own for three reasons. Ray ends the program that it is in when its head node is gone for a
minute, and ours has requests to answer. Ray's answers are pickles, and nothing that comes from a network is unpickled
where requests are. And Ray kills our actors as soon as this process is gone, however that came.

Orders come as lines on standard input, reports go as lines to standard output; the end of the input ends everything.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from butterfly.cluster.ray_actor import WorkerKeeper
from butterfly.cluster.ray_words import (
    Connected,
    KillWorker,
    NodesSeen,
    Order,
    RayNode,
    Refused,
    Report,
    StartWorker,
    StopAll,
    WorkerBegun,
    WorkerOver,
    order_decoder,
    to_line,
)
from butterfly.errors import LaunchError

_LOOK_INTERVAL_S = 0.1
_NODES_INTERVAL_S = 1.0
_KNOCK_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 5.0  # when nobody says how long it may take
_MAX_REASON = 300  # characters of what Ray says: it can go on for pages


class _Kept(NamedTuple):
    """A worker that is on its way or runs."""

    order: StartWorker
    actor: Any
    answer: Any  # Ray's reference to what the actor will say next: that the worker has begun, or that it has ended
    deadline_s: float  # for having begun


class RayDriver:
    """Keeps one actor for each worker."""

    def __init__(self, ray: Any, start_timeout_s: float, reports: BinaryIO) -> None:
        self._ray = ray
        self._start_timeout_s = start_timeout_s
        self._reports = reports
        self._starting: dict[str, _Kept] = {}
        self._running: dict[str, _Kept] = {}
        self._nodes: tuple[RayNode, ...] | None = None
        self._nodes_seen_s = float("-inf")

    def report(self, words: Report) -> None:
        self._reports.write(to_line(words))
        self._reports.flush()

    def start(self, order: StartWorker) -> None:
        """Ask Ray for an actor on the node, and the actor for the worker. Waits for neither."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = (
            self._ray.remote(WorkerKeeper)
            .options(
                num_cpus=order.num_cpus,  # also how many OpenMP threads Ray allows
                num_gpus=order.num_gpus,
                max_restarts=0,  # who runs again is not for Ray to say
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(order.node.node_id, soft=False),
            )
            .remote()
        )
        begin = actor.begin.remote(order.invitation, order.arguments)
        self._starting[order.name] = _Kept(order, actor, begin, time.monotonic() + self._start_timeout_s)

    def kill(self, name: str) -> None:
        """Have this worker ended by force, if it is here: its actor does it, for a process that hangs hears nothing."""
        if (worker := self._running.get(name)) is not None:
            worker.actor.kill_worker.remote()
        elif name in self._starting:
            self._end(name, None, "it was ended before it had begun")

    def look(self) -> None:
        """Report what has happened."""
        self._look_at_nodes()
        for name, worker in self._ready(self._starting):
            self._hear_begin(name, worker)
        for name, worker in self._ready(self._running):
            self._hear_end(name, worker)
        now_s = time.monotonic()
        for name, worker in list(self._starting.items()):
            if now_s > worker.deadline_s:
                order = worker.order
                self._end(
                    name,
                    None,
                    f"Ray did not start it on {order.node.host} within {self._start_timeout_s:g} s: are its "
                    f"{order.num_cpus:g} CPUs and {order.num_gpus:g} GPUs in use by others?",
                )

    def stop(self, timeout_s: float) -> None:
        """End all workers, by force when half of the time has passed, and their actors."""
        workers = [*self._starting.values(), *self._running.values()]
        ends = [worker.actor.stop.remote(timeout_s / 2) for worker in workers]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=timeout_s)
        for worker in workers:
            self._ray.kill(worker.actor)
        self._starting.clear()
        self._running.clear()

    # ------------------------------------------------------------------------------------- looking

    def _look_at_nodes(self) -> None:
        now_s = time.monotonic()
        if now_s - self._nodes_seen_s < _NODES_INTERVAL_S:
            return
        self._nodes_seen_s = now_s
        nodes = tuple(
            RayNode(
                node_id=node["NodeID"],
                host=node["NodeManagerAddress"],
                num_cpus=node["Resources"].get("CPU", 0.0),
                num_gpus=node["Resources"].get("GPU", 0.0),
            )
            for node in sorted(self._ray.nodes(), key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))
            if node["Alive"]
        )
        if nodes != self._nodes:
            self._nodes = nodes
            self.report(NodesSeen(nodes=nodes))

    def _ready(self, workers: dict[str, _Kept]) -> Iterator[tuple[str, _Kept]]:
        """Yield the workers whose answer is there."""
        references = {worker.answer: name for name, worker in workers.items()}
        if references:
            done, _ = self._ray.wait(list(references), num_returns=len(references), timeout=0)
            for reference in done:
                name = references[reference]
                yield name, workers[name]

    def _hear_begin(self, name: str, worker: _Kept) -> None:
        try:
            pid, niceness = self._ray.get(worker.answer)
        except self._ray.exceptions.RayError as error:
            self._end(name, None, in_short(str(error), worker.order.node.host))
            return
        del self._starting[name]
        self._running[name] = worker._replace(answer=worker.actor.wait_end.remote())  # calls may overtake each other
        self.report(WorkerBegun(name=name, pid=pid, niceness=niceness))

    def _hear_end(self, name: str, worker: _Kept) -> None:
        try:
            returncode, output_tail = self._ray.get(worker.answer)
        except self._ray.exceptions.ActorUnavailableError:  # the link to it: Ray finds out whether it lives
            self._running[name] = worker._replace(answer=worker.actor.wait_end.remote())
            return
        except self._ray.exceptions.RayError as error:
            returncode, output_tail = None, in_short(str(error), worker.order.node.host)
        self._end(name, returncode, output_tail)

    def _end(self, name: str, returncode: int | None, output_tail: str) -> None:
        """Give the actor's place back to Ray, and say that the worker is over."""
        worker = self._starting.pop(name, None) or self._running.pop(name)
        self._ray.kill(worker.actor)
        self.report(WorkerOver(name=name, returncode=returncode, output_tail=output_tail))


def in_short(text: str, host: str) -> str:
    """Return in one line what an error of Ray's says about a worker on `host`."""
    if "No module named 'butterfly" in text:
        return f"Butterfly is not installed for the Python of the Ray node {host}"
    if "node has died" in text:
        return f"Ray lost its node {host}"
    if "died unexpectedly" in text:
        return f"the Ray actor on {host} that held it died"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return f"Ray on {host}: " + " ".join(plain.split())[-_MAX_REASON:]  # a traceback ends with what went wrong


def _connect(address: str) -> Any:
    """Return the module `ray`, connected. Raises LaunchError."""
    try:
        import ray
    except ImportError as error:
        raise LaunchError("Ray is not installed here: pip install 'butterfly-inference[ray]'") from error
    _knock(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        if isinstance(error, ConnectionError):  # Ray does not say that it was refused
            reason += "; are RAY_AUTH_MODE and the token the same here and there?"
        raise LaunchError(f"Ray at {address}: {reason}") from error
    return ray


def _knock(address: str) -> None:
    """Raise LaunchError where nobody listens: Ray would try again for a minute."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:  # such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_TIMEOUT_S).close()
    except OSError as error:
        raise LaunchError(f"no Ray cluster: nobody answers at {address}: {error.strerror or error}") from error


def _orders(driver: RayDriver) -> Iterator[Order]:
    """Yield what is asked for, looking around meanwhile. Ends with the input."""
    pending = b""
    while True:
        if select.select([0], [], [], _LOOK_INTERVAL_S)[0]:
            part = os.read(0, 1 << 16)
            if not part:
                return
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                yield order_decoder.decode(line)
        driver.look()


def _serve(driver: RayDriver) -> None:
    timeout_s = _STOP_TIMEOUT_S
    try:
        for order in _orders(driver):
            if isinstance(order, StopAll):
                timeout_s = order.timeout_s
                return
            if isinstance(order, KillWorker):
                driver.kill(order.name)
            else:
                driver.start(order)
    finally:
        driver.stop(timeout_s)


def main(address: str, start_timeout_s: float) -> int:
    """Work until the input ends; return the exit code."""
    reports = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Ray prints must not be taken for a report
    try:
        ray = _connect(address)
    except LaunchError as error:
        reports.write(to_line(Refused(reason=str(error))))
        reports.flush()
        return 1
    driver = RayDriver(ray, start_timeout_s, reports)
    driver.report(Connected(ray_version=ray.__version__))
    try:
        _serve(driver)
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
