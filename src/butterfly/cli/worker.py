"""`butterfly worker`: one stage in this process."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from butterfly import __version__
from butterfly.blobs import FileDigests
from butterfly.cli.console import set_up_logging
from butterfly.cli.entering import (
    JOIN_VARIABLE,
    SECRET_VARIABLE,
    STANDARD_INPUT,
    EntryOptions,
    Start,
    entered,
    listening_hosts,
)
from butterfly.cli.options import Device, LogLevel, Memory, Threads
from butterfly.communication import KeyPair, ZmqTransport
from butterfly.errors import ConfigError
from butterfly.folders import cache_folder
from butterfly.option_values import parse_bytes
from butterfly.worker import hold_lifeline, measure_resources, run_worker
from butterfly.worker.tensors import TensorCache, TensorSource

_PRIMITIVE_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # of PyTorch, and of oneDNN below it
_CACHED_PRIMITIVES = "64"  # in place of 1024: more than a step needs, and each length of a prompt adds some to both
_CACHE_BYTES = 50 << 30  # of fetched tensors, when nothing was said
_CACHE_SHARE = 0.8  # of the disk's free bytes, if that is less

Join = Annotated[
    str,
    typer.Option(
        metavar="LINE",
        help="The line that `butterfly serve --listen` or `butterfly token make` printed. Here others see its secret "
        f"in the process list: better give it in {JOIN_VARIABLE}, or give - and it on standard input.",
    ),
]
Discover = Annotated[
    bool, typer.Option("--discover", help="Look on the local network (mDNS) for the coordinator of --secret.")
]
Secret = Annotated[
    str,
    typer.Option(
        metavar="KEY.SECRET",
        help="For --discover: all that stands behind the # of a join line. Here others see it in the process list: "
        f"better give it in {SECRET_VARIABLE}.",
    ),
]
InvitationFile = Annotated[
    str,
    typer.Option(metavar="FILE", help="File with the invitation of a coordinator; - reads it from standard input."),
]
Encrypt = Annotated[
    bool,
    typer.Option("--encrypt/--no-encrypt", help="With --invitation: encrypt links or not, as the coordinator does."),
]
Name = Annotated[str, typer.Option(help="What this worker is called; if not given, as its host.")]
ListenHost = Annotated[
    str,
    typer.Option(
        "--listen-host", help="Address that other workers reach this one at, if not the one towards the coordinator."
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Folder in which fetched tensors are kept; if not given, the cache folder."),
]
CacheSize = Annotated[
    str,
    typer.Option("--cache-size", help="What they may take there, such as 20G; if not given, 50G or 80 % of free disk."),
]
ModelFile = Annotated[
    Path | None, typer.Option("--model-file", help="A file of the model on this machine: what it has is not fetched.")
]
Rejoin = Annotated[
    bool, typer.Option("--rejoin/--no-rejoin", help="When the coordinator is gone, wait for it and join it again.")
]
JoinTimeout = Annotated[
    float, typer.Option("--join-timeout", min=1.0, help="Seconds to wait for a coordinator that is not there yet.")
]


class Keeping(NamedTuple):
    """Where tensors are, and how many fetched ones may be kept."""

    folder: Path
    limit_bytes: int
    model_file: Path | None


def worker(
    join: Join = "",
    discover: Discover = False,
    secret: Secret = "",
    invitation: InvitationFile = "",
    name: Name = "",
    device: Device = "auto",
    threads: Threads = 0,
    memory: Memory = "",
    encrypt: Encrypt = True,
    listen_host: ListenHost = "",
    cache_dir: CacheDir = None,
    cache_size: CacheSize = "",
    model_file: ModelFile = None,
    rejoin: Rejoin = True,
    join_timeout: JoinTimeout = 60.0,
    log_level: LogLevel = "warning",
) -> None:
    """Join a coordinator and run stages of its model. `butterfly serve` starts local workers itself."""
    set_up_logging(log_level)
    options = EntryOptions(
        invitation=invitation,
        join=join,
        discover=discover,
        secret=secret,
        name=name,
        encrypt=encrypt,
        timeout_s=join_timeout,
    )
    keeping = kept_tensors(cache_dir, cache_size, model_file)
    memory_bytes = parse_bytes(memory) if memory else None
    launched = invitation == STANDARD_INPUT
    with entered(options, os.environ) as start:
        if launched:
            hold_lifeline()  # before torch: its import takes seconds, and who started us may be gone by then
        for variable in _PRIMITIVE_CACHES:
            os.environ.setdefault(variable, _CACHED_PRIMITIVES)
        import torch  # here: no other command needs it

        if threads:
            torch.set_num_threads(threads)
        code = work(start, device, memory_bytes, listen_host, keeping, launched=launched, rejoin=rejoin)
    _leave(code)


def work(
    start: Start,
    device: str,
    memory_bytes: int | None,
    listen_host: str,
    keeping: Keeping,
    *,
    launched: bool,
    rejoin: bool,
) -> int:
    """Be a worker until told to stop; return the exit code."""
    from butterfly.engine import resolve_device
    from butterfly.worker.engine_profiler import engine_profiler
    from butterfly.worker.engine_stage import EngineStageFactory

    invited = start.invitation
    target = resolve_device(device)
    resources = measure_resources(str(target), memory_bytes)
    keys = KeyPair(public_key=invited.public_key, secret_key=invited.secret_key)
    host, told_host = listening_hosts(listen_host, invited.coordinator.endpoint)
    digests = FileDigests(cache_folder() / "digests.jsonl")
    cache = TensorCache(keeping.folder, keeping.limit_bytes, digests)
    with (
        closing(ZmqTransport(invited.name, keys, host, start.encrypt, told_host)) as transport,
        closing(TensorSource(transport, cache, digests, model_file=keeping.model_file)) as source,
        closing(transport.open_service(source.answer)) as giving,
    ):
        return run_worker(
            invited,
            transport,
            EngineStageFactory(target, source.locate),
            resources,
            profiler=engine_profiler(target, resources.memory_bytes, __version__, locate=source.locate),
            launched=launched,
            rejoin=start.enter_again if rejoin else None,
            blobs=None if launched else giving.address,
        )


def kept_tensors(cache_dir: Path | None, cache_size: str, model_file: Path | None) -> Keeping:
    """What the options say about tensors. Raises ConfigError."""
    if model_file is not None and not model_file.exists():
        raise ConfigError(f"--model-file {model_file}: no such file or folder")
    folder = (cache_dir or cache_folder()).expanduser().absolute()
    limit_bytes = parse_bytes(cache_size) if cache_size else default_cache_bytes(folder)
    return Keeping(folder, limit_bytes, model_file)


def default_cache_bytes(folder: Path) -> int:
    """50 GiB or 80 % of the free disk, if that is less. What is in the cache counts as free: it may all go."""
    held_bytes = 0
    with suppress(FileNotFoundError):
        for path in (folder / "tensors").iterdir():
            with suppress(FileNotFoundError):  # another worker removes files, too
                held_bytes += path.stat().st_size
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return min(_CACHE_BYTES, int(_CACHE_SHARE * (shutil.disk_usage(existing).free + held_bytes)))


def _leave(code: int) -> None:
    """End without taking the interpreter down: everything is closed, and torch alone would need half a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
