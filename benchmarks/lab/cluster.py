"""The emulated cluster: a context manager that makes nodes, lets their links be changed, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.lab.cgroups import make_group, short_slices
from benchmarks.lab.remains import NAMESPACES, new_run, remove_dead_runs, remove_run
from benchmarks.lab.shapes import MAX_CONTROL_BYTES, LabError, Link, NodeConfig, SwitchLoad, Traffic
from benchmarks.lab.taps import node_address, open_tap, pace, run_ip, set_up_node

ROOT = Path(__file__).parents[2]
CONTROL_S = 10.0
ENDING_S = 10.0
_JOIN_GROUP = 'echo $$ > "$0" && exec "$@"'


def unavailable() -> str | None:
    """Why no lab can be made here, or None. It tries: makes and removes a namespace and a network device."""
    if sys.platform != "linux":
        return "an emulated cluster needs Linux"
    if missing := [tool for tool in ("ip", "tc", "nsenter", "taskset", "sh") if shutil.which(tool) is None]:
        return f"an emulated cluster needs the commands {', '.join(missing)}"
    if os.geteuid() != 0:
        return "an emulated cluster needs root"
    name = f"{new_run()}-0"
    try:
        os.close(open_tap(name.removeprefix("bflab-")[:15]))
        run_ip([f"netns add {name}", f"netns delete {name}"])
    except (OSError, LabError) as error:
        return f"this system does not let a network be emulated: {error}"
    return None


def _end(switch: subprocess.Popen[bytes]) -> None:
    """Wait for the switch to tidy up, which it does once it is let go of."""
    try:
        switch.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        switch.kill()
        switch.wait()


@dataclass
class Node:
    """One machine of the cluster, in which any program can be started."""

    name: str
    address: str
    namespace: str
    cores: tuple[int, ...]
    group: Path | None
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def command(self, argv: Sequence[str], pinned: bool = True) -> list[str]:
        """`argv` made to run in the node's network; pinned: also on its cores and within its CPU share."""
        prefix = []
        if pinned and self.group is not None:
            prefix += ["sh", "-c", _JOIN_GROUP, str(self.group / "cgroup.procs")]
        if pinned and self.cores:
            prefix += ["taskset", "--cpu-list", ",".join(map(str, self.cores))]
        return [*prefix, "nsenter", f"--net={NAMESPACES / self.namespace}", "--", *argv]

    def popen(self, argv: Sequence[str], *, pinned: bool = True, **popen_kwargs: Any) -> subprocess.Popen[Any]:
        """Start `argv` here, in a session of its own. It is killed with all it started when the lab ends."""
        process = subprocess.Popen(self.command(argv, pinned), **{**popen_kwargs, "start_new_session": True})
        self.processes.append(process)
        return process

    def kill_processes(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()


class Lab:
    """Network namespaces joined by a switch that gives each link its rate and delay.

    with Lab([NodeConfig("a", Link(1e9, 1e-4), Link(1e9, 1e-4)), ...]) as lab:
        lab.nodes["a"].popen([...])

    Nodes of different sites are `between_sites_s` further apart, one way.
    Any number of labs may exist at once; their nodes do not see each other, nor the machine they run on.
    Raises LabError, on entering, where the system refuses; see `unavailable`.
    """

    def __init__(self, configs: Sequence[NodeConfig], between_sites_s: float = 0.0) -> None:
        names = [config.name for config in configs]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a lab needs nodes with names that differ, not {names}")
        self.configs = {config.name: config for config in configs}
        self.between_sites_s = between_sites_s
        self.nodes: dict[str, Node] = {}
        self.run = new_run()  # the name under which the system knows what is ours
        self._numbers = {name: number for number, name in enumerate(names)}
        self._asking = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        remove_dead_runs()
        with ExitStack() as stack:
            stack.callback(remove_run, self.run)
            try:
                taps = self._make_nodes(stack)
                self._start_switch(stack, taps)
            except OSError as error:
                raise LabError(f"cannot make the lab: {error}") from error
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def reshape(self, name: str, up: Link | None = None, down: Link | None = None) -> None:
        """Give a node's links another rate and delay, for all frames sent from now on. None leaves a link as it is."""
        config = self.configs[name]
        links = {"up": up and astuple(up), "down": down and astuple(down)}
        self._ask(do="reshape", node=self._numbers[name], **links)
        if up is not None:
            pace(self.nodes[name].namespace, up)
        self.configs[name] = replace(config, up=up or config.up, down=down or config.down)

    def cut(self, name: str) -> None:
        """Lose all that a node sends or should receive, without telling anyone: a pulled cable."""
        self._ask(do="cut", node=self._numbers[name])

    def restore(self, name: str) -> None:
        """Undo `cut`."""
        self._ask(do="restore", node=self._numbers[name])

    def traffic(self) -> dict[tuple[str, str], Traffic]:
        """What went from each node to each other since the start, by sender and receiver."""
        names = list(self._numbers)
        return {(names[a], names[b]): Traffic(*counts) for a, b, *counts in self._ask(do="traffic")}

    def switch_load(self) -> SwitchLoad:
        """What the switch has used and how late it has been since the start."""
        return SwitchLoad(*self._ask(do="load"))

    def _make_nodes(self, stack: ExitStack) -> list[int]:
        """Make every node and return the descriptors of their interfaces, closed when the stack is."""
        taps = []
        if any(config.cpu_share is not None for config in self.configs.values()):
            stack.enter_context(short_slices())
        for number, config in enumerate(self.configs.values()):
            namespace = f"{self.run}-{number}"
            tap_name = f"bf{self.run.rpartition('-')[2]}{number}"
            taps.append(open_tap(tap_name))
            stack.callback(os.close, taps[-1])
            set_up_node(number, config.up, tap_name, namespace, len(self.configs))
            group = None if config.cpu_share is None else make_group(namespace, config.cpu_share)
            node = Node(config.name, node_address(number), namespace, config.cores, group)
            stack.callback(node.kill_processes)
            self.nodes[config.name] = node
        return taps

    def _start_switch(self, stack: ExitStack, taps: Sequence[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(CONTROL_S)
        links = [(astuple(config.up), astuple(config.down)) for config in self.configs.values()]
        settings = {
            "run": self.run,
            "control": theirs.fileno(),
            "taps": taps,
            "links": links,
            "sites": [config.site for config in self.configs.values()],
            "between_sites_s": self.between_sites_s,
        }
        with theirs:
            switch = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.lab.switch", json.dumps(settings)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=(*taps, theirs.fileno()),
                start_new_session=True,  # Ctrl-C is for us; the switch ends when we let go of the control socket
                stdin=subprocess.DEVNULL,
            )
        stack.callback(_end, switch)
        stack.callback(ours.close)
        self._control = ours
        if ours.recv(MAX_CONTROL_BYTES) != b"ready":
            raise LabError("the lab's switch did not start")

    def _ask(self, **request: Any) -> Any:
        with self._asking:
            try:
                self._control.send(json.dumps(request).encode())
                answer = self._control.recv(MAX_CONTROL_BYTES)
            except OSError as error:
                raise LabError(f"the lab's switch does not answer: {error}") from error
        if not answer:
            raise LabError("the lab's switch has ended")
        return json.loads(answer)
