"""`butterfly worker`: one stage in this process."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Annotated

import typer

from butterfly import __version__
from butterfly.cli.console import set_up_logging
from butterfly.cli.options import Device, Encrypt, LogLevel, Memory, Threads
from butterfly.option_values import parse_bytes


def worker(
    invitation: Annotated[
        str, typer.Option(help="File with the invitation of a coordinator; - reads it from standard input.")
    ],
    device: Device = "auto",
    threads: Threads = 0,
    memory: Memory = "",
    encrypt: Encrypt = True,
    log_level: LogLevel = "warning",
) -> None:
    """Join a coordinator and run one stage of its model. `butterfly serve` starts local workers itself."""
    set_up_logging(log_level)
    from butterfly.worker import hold_lifeline, read_invitation

    invited = read_invitation(invitation)
    launched = invitation == "-"
    if launched:
        hold_lifeline()  # before torch: its import takes seconds, and who started us may be gone by then
    import torch  # here: no other command needs it

    from butterfly.communication import KeyPair, ZmqTransport, local_host_towards
    from butterfly.engine import resolve_device
    from butterfly.worker import measure_resources, run_worker
    from butterfly.worker.engine_profiler import engine_profiler
    from butterfly.worker.engine_stage import EngineStageFactory

    if threads:
        torch.set_num_threads(threads)
    target = resolve_device(device)
    resources = measure_resources(str(target), parse_bytes(memory) if memory else None)
    keys = KeyPair(public_key=invited.public_key, secret_key=invited.secret_key)
    host = local_host_towards(invited.coordinator.endpoint)
    with closing(ZmqTransport(invited.name, keys, host, encrypt=encrypt)) as transport:
        profiler = engine_profiler(target, resources.memory_bytes, __version__)
        stages = EngineStageFactory(target)
        code = run_worker(invited, transport, stages, resources, profiler=profiler, launched=launched)
    _leave(code)


def _leave(code: int) -> None:
    """End without taking the interpreter down: everything is closed, and torch alone would need half a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
