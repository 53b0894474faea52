"""Foreign clients as their users start them: programs of their own environment, offline, and ended whatever happens."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.support.product import Server, session_members

FOLDER = Path(__file__).parent
PROGRAMS = FOLDER / ".venv" / "bin"  # `make clients` fills it
MODEL = "smollm2"
WORKERS = 2
_PATIENCE_S = 1200.0  # against a hang only: what takes a minute on an idle machine takes many on a busy one
_SHOWN_LINES = 30  # of the output of a client that failed


class CheckError(Exception):
    """The check failed; the message says how, for people."""


@contextmanager
def served(*options: str) -> Iterator[str]:
    """Serve the model during the block; yields the URL of the server, without /v1. Raises CheckError."""
    with Server(*options, workers=WORKERS, model=MODEL) as server:
        try:
            server.wait_ready()
        except AssertionError as error:
            raise CheckError(str(error)) from error
        try:
            yield server.url
        except CheckError as error:
            raise CheckError(f"{error}\nThe server wrote: {server.complaints().strip() or 'nothing'}") from error


def run_client(program: str, *arguments: str, folder: Path) -> str:
    """Run a program of the clients' environment to its end, started in `folder`, and return what it printed.

    Whatever it started is gone afterwards, also when this process is interrupted. Raises CheckError.
    """
    path = PROGRAMS / program
    if not path.exists():
        raise CheckError(f"{path} is missing; install it with `make clients`")
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile(mode="w+") as output:
        process = subprocess.Popen(
            [str(path), *arguments],
            cwd=folder,
            env=_offline(cache),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise CheckError(f"{program} did not end within {_PATIENCE_S:.0f} s") from error
        finally:
            for member in session_members(process.pid):
                member.kill()
            process.wait()
        output.seek(0)
        text = output.read()
    if code != 0:
        last = "\n".join(text.splitlines()[-_SHOWN_LINES:])
        raise CheckError(f"{program} ended with code {code}:\n{last}")
    return text


def run_check(check: Callable[[], None], description: str) -> NoReturn:
    """Run `check` as a program. Its exit code is 0, 1 for a failed check, or 130 or 143 when it was told to stop."""
    argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    signal.signal(signal.SIGTERM, _exit)
    # In the background of a script Ctrl-C would be ignored, here and by the server, which is stopped with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        check()
    except CheckError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    print("\npassed")
    sys.exit(0)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _offline(cache: str) -> dict[str, str]:
    """Keep the clients from asking a hub, and from leaving files in the home folder."""
    return {
        **os.environ,
        "HF_HOME": cache,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "200",  # for their tables
        "NO_PROXY": "127.0.0.1",
    }
