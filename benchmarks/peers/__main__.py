"""`python -m benchmarks.peers`: download and build the peers (10 minutes on two cores), and say where they are."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.peers.llama_cpp import BuildError, build


def main() -> int:
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    try:
        with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task("llama.cpp", total=1.0)
            peer = build(lambda what, fraction: bar.update(task, description=what, completed=fraction))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the next run goes on from here", file=sys.stderr)
        return 130
    console.print(f"llama.cpp is ready: {peer.folder}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
