"""Serve for a long time while workers join, leave and die: do memory, handles and threads stay flat? No root needed.

Progress on stderr; the last line on stdout is one JSON object. `--results FOLDER` keeps page and JSON. The exit code
is 1 when a text changed, a stream failed, a count of handles grows steadily, or anything is left over.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec

from benchmarks.bench import EXIT_FAILED, EXIT_INTERRUPTED, tell, terminate
from benchmarks.faults.running import Cluster, make_prompts
from benchmarks.hardware import Machine, measure_machine
from benchmarks.processes import ServerFailedError, ServerProcess, running, wait_until_ready
from benchmarks.soak.events import SPARED, Disturber, rehearse, settle
from benchmarks.soak.guests import BUTTERFLY, Guests
from benchmarks.soak.load import LoadThread
from benchmarks.soak.record import SoakRecord
from benchmarks.soak.remains import MARK_VARIABLE, SHARED_MEMORY, find_remains, names_in
from benchmarks.soak.report import summary, write_results
from benchmarks.soak.sampling import Sampler, handles_by_kind
from butterfly.folders import CACHE_VARIABLE, STATE_VARIABLE
from butterfly.models.packages import ALIASES, packaged_file

_NUM_PROMPTS, _MAX_TOKENS = 10, 48
_START_S, _SETTLE_S, _QUIET_S = 120.0, 120.0, 30.0
_LOOK_S = 1.0


class _Place(NamedTuple):
    """Where everything of a soak lies and listens."""

    folder: Path
    mark: str  # of its processes
    port: int
    door: int  # the port after it is used, too

    @property
    def environment(self) -> dict[str, str]:
        """Of the server; the workers that it starts inherit it."""
        return {
            **os.environ,
            STATE_VARIABLE: str(self.folder / "server"),
            CACHE_VARIABLE: str(self.folder / "server-cache"),
            "TMPDIR": str(self.folder / "tmp"),
            MARK_VARIABLE: self.mark,
        }

    def present(self, model: str) -> str:
        """Return a name of the model that only means something where the server runs, if it is a file.

        So workers that join cannot read it on this machine, and fetch their tensors as others would.
        """
        path = packaged_file(model) if model in ALIASES else Path(model)
        if not path.is_file():
            return model
        (self.folder / "at" / path.name).symlink_to(path.absolute())
        return f"/proc/self/cwd/{path.name}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", metavar="FOLDER", type=Path, help="write page and JSON here")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminate)
    try:
        record = soak(options.model, options.minutes * 60, options.seed, measure_machine([1]))
    except ServerFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    if options.results:
        tell(f"written: {write_results(record, options.results)}")
    print(summary(record))
    print(msgspec.json.encode(record).decode())
    return EXIT_FAILED if record.failures else 0


def soak(model: str, duration_s: float, seed: int, machine: Machine) -> SoakRecord:
    """Raises ServerFailedError when the server does not start, or ends."""
    shared_before = names_in(SHARED_MEMORY)
    with tempfile.TemporaryDirectory(prefix="butterfly-soak-") as folder:
        place = _Place(Path(folder), uuid4().hex, *_free_ports())
        for name in ("tmp", "at"):
            (place.folder / name).mkdir()
        record = _run(model, duration_s, seed, machine, place)
        found = find_remains(place.mark, place.folder, (place.port, place.door, place.door + 1), shared_before)
    return msgspec.structs.replace(record, leftovers=tuple(found.leftovers), kept=tuple(found.kept))


def _run(model: str, duration_s: float, seed: int, machine: Machine, place: _Place) -> SoakRecord:
    """Everything that was started here has ended when this returns."""
    argv = ["env", "-C", str(place.folder / "at"), *BUTTERFLY, "serve", place.present(model)]
    argv += ["--served-model-name", model, "--workers", "2", "--threads", "1", "--no-api-key", "--context", "1024"]
    argv += ["--port", str(place.port), "--listen", f"127.0.0.1:{place.door}", "--all-workers"]
    with ExitStack() as after_server:  # workers that joined outlive the server, and must end all the same
        with running("butterfly serve", argv, None, place.environment) as server:
            on = Cluster(f"http://127.0.0.1:{place.port}", None, None, _MAX_TOKENS)
            on.model = model
            wait_until_ready(server, f"{on.url}/ready", _START_S)
            prompts = make_prompts(_NUM_PROMPTS)
            tell("the texts when nothing happens")
            expected = [on.ask([prompt], lambda: None)[0].text for prompt in prompts]
            guests = after_server.enter_context(Guests(join_line(server), place.folder, place.environment))
            tell("a worker comes and goes for the first time")
            problems = [rehearse(on, guests, _SETTLE_S)]
            first_handles = quiet_handles(server.process.pid, None)
            started_s = time.monotonic()
            disturber = Disturber(on, guests, seed)
            with Sampler(server.process.pid, guests.pids, lambda: disturber.model_bytes) as sampler:
                with LoadThread(on, prompts, expected, seed) as streams:
                    try:
                        disturber.run(started_s + duration_s)
                    except ServerFailedError as error:
                        raise server.fail(f"does not answer ({error})") from error
                lasted_s = time.monotonic() - started_s
            problems.append(settle(on, guests, _SETTLE_S))
            last_handles = quiet_handles(server.process.pid, first_handles)
        if server.process.returncode == -signal.SIGKILL:
            problems.append("the server did not end after SIGTERM")
    processes = sampler.records({server.process.pid: "server", **disturber.names, **guests.names})
    workers = sorted(processes[1:], key=lambda one: (one.lived_s, one.name == SPARED))
    return SoakRecord(
        created=datetime.date.today().isoformat(),
        machine=machine,
        model=model,
        seed=seed,
        lasted_s=lasted_s,
        load=streams.load,
        events=tuple(disturber.events),
        num_processes=len(processes),
        server=processes[0],
        worker=workers[-1],
        first_handles=first_handles,
        last_handles=last_handles,
        problems=(*filter(None, problems), *guests.problems),
    )


def quiet_handles(pid: int, before: Mapping[str, int] | None) -> dict[str, int]:
    """Return a process's handles by kind when nobody asks it anything: no more than before, or after a deadline.

    What was just closed takes some moments to go: a farewell to a worker, a connection of a client.
    """
    deadline_s = time.monotonic() + _QUIET_S
    handles = handles_by_kind(pid)
    while time.monotonic() < deadline_s:
        if before is not None and all(count <= before.get(kind, 0) for kind, count in handles.items()):
            break
        time.sleep(_LOOK_S)
        last, handles = handles, handles_by_kind(pid)
        if before is None and handles == last:
            break
    return handles


def join_line(server: ServerProcess) -> str:
    """Read it from what the server printed, without moving where it prints next."""
    printed = os.pread(server.output.fileno(), 1 << 16, 0).decode(errors="replace")
    found = [word.strip("'") for word in printed.split() if "butterfly://" in word]
    if not found:
        raise server.fail("printed no join line")
    return found[0]


def _free_ports() -> tuple[int, int]:
    """One for the API, and one with the next one free as well for those that join."""
    while True:
        port, door = random.sample(range(20000, 30000, 2), 2)
        try:
            for wanted in (port, door, door + 1):
                socket.create_server(("127.0.0.1", wanted)).close()
        except OSError:
            continue
        return port, door


if __name__ == "__main__":
    raise SystemExit(main())
