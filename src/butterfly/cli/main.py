"""The command `butterfly`: errors are one line and a non-zero exit, never a traceback.

Exit codes: 0 done, 1 an expected failure, 2 wrong usage, 130 Ctrl-C (SIGINT), 143 SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from butterfly import __version__
from butterfly.cli.console import console, print_error
from butterfly.errors import ButterflyError

COMMANDS = ("serve", "generate", "chat", "worker", "token", "plan", "probe", "status", "drain", "bench")
"""Modules here, each with a function of the same name, or a typer of commands below it."""

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


class LazyCommands(TyperGroup):
    """Imports a command when it is wanted: a worker does without the API, `status` without models."""

    def list_commands(self, ctx: Any) -> list[str]:  # Any: typer keeps the type of its contexts private
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(f"butterfly.cli.{cmd_name}"), cmd_name)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(found)
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            ctx.fail(f"unknown command {args[0]!r}: {_hint(args[0], COMMANDS, ctx)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="butterfly",
    cls=LazyCommands,
    help="Run one transformer over several ordinary machines.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"butterfly {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        console.print(context.get_help(), markup=False, soft_wrap=True)
        raise typer.Exit(2)


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGTERM, _terminate)
    code = 1
    try:
        code = app(standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except typer.TyperException as error:
        print_error(_explain(error))
        code = error.exit_code
    except ButterflyError as error:
        print_error(str(error))
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on it could only print a traceback
    sys.exit(code)


def _explain(error: typer.TyperException) -> str:
    """The message of a usage error, with the nearest known option."""
    if not hasattr(error, "possibilities"):  # which only that of an unknown option has; its class is private
        return error.format_message()
    unknown: Any = error
    options = [name for parameter in unknown.ctx.command.params for name in parameter.opts if name.startswith("--")]
    return f"unknown option {unknown.option_name}: {_hint(unknown.option_name, options, unknown.ctx)}"


def _hint(word: str, known: Sequence[str], context: typer.Context) -> str:
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"see {context.command_path} --help"


def _terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds, so that every `finally` runs; what comes after it cannot interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(_TERMINATED)


if __name__ == "__main__":
    main()
