"""How far the studies of a work folder are: python -m tools.study_status WORK [NAME …] [--watch]

Stages with progress and time to the end, training losses, GPU-hours spent and left, failures with the last lines of
their logs; of studies that run here and of those that were submitted to Slurm. `--watch` shows it anew until all is
done, or until Ctrl-C; where the output is no terminal it is shown once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.errors import UserError, exit_on_user_error
from megatron_ext.study.live import FAILED, SETTLED, StageStatus, load_kept, look
from megatron_ext.study.live_view import screen

if TYPE_CHECKING:
    from rich.console import Console


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Show it; exit code 1: a stage has failed."""
    from rich.console import Console

    arguments = _parse(argv)
    console = Console()
    if arguments.watch and console.is_terminal:
        stages = _watch(console, arguments.work, arguments.names, arguments.interval)
    else:
        stages = look(load_kept(arguments.work, arguments.names), arguments.work)
        console.print(screen(stages, _now()))
    return 1 if any(one.state == FAILED for one in stages) else 0


def _watch(console: Console, work: Path, names: Sequence[str], interval: float) -> list[StageStatus]:
    """Show it until nothing is left to do; returns the last look. A look that fails after the first is told, and the
    next one goes on: Slurm's controller and network file systems are away for a moment."""
    from rich.console import Group
    from rich.live import Live

    stages = look(load_kept(work, names), work)
    with Live(screen(stages, _now()), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while any(one.state not in SETTLED for one in stages):
            time.sleep(interval)
            try:
                stages = look(load_kept(work, names), work)
                live.update(screen(stages, _now()), refresh=True)
            except (UserError, OSError) as error:
                live.update(Group(screen(stages, _now()), f"this look failed: {error}"), refresh=True)
    return stages


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="work folder of studies that were run or submitted")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="studies, as in <work>/studies/<name>.json (default: all)")
    parser.add_argument("--watch", action="store_true", help="show it anew until all is done or Ctrl-C")
    parser.add_argument("--interval", type=_seconds, default=5.0, metavar="SECONDS", help="between looks (default 5)")
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text}: give seconds between looks, 0.1 to 86400")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
