"""The command `butterfly`: errors are one line and a non-zero exit, never a traceback."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import click
import typer

from butterfly import __version__
from butterfly.cli import chat, generate, serve, status, worker
from butterfly.cli.console import console, print_error
from butterfly.errors import ButterflyError

app = typer.Typer(
    name="butterfly",
    help="Run one transformer over several ordinary machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("worker")(worker.worker)
app.command("status")(status.status)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"butterfly {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _terminate)
    code = 1
    try:
        code = app(standalone_mode=False) or 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = 130
    except click.exceptions.NoArgsIsHelpError as error:
        console.print(error.format_message())
        code = 2
    except click.ClickException as error:
        print_error(_explain(error))
        code = error.exit_code
    except ButterflyError as error:
        print_error(str(error))
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _explain(error: click.ClickException) -> str:
    """The message of a usage error, with the nearest known option or command."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        known = [name for parameter in error.ctx.command.params for name in parameter.opts]
        near = difflib.get_close_matches(error.option_name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"see {error.ctx.command_path} --help"
        return f"unknown option {error.option_name}: {hint}"
    return message


def _terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that every `finally` runs."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
