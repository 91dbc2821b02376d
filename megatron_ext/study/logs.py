"""What the logs of stages say."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 64 * 1024
_ERROR_MARKS = ("error:", "Error:")
_LAUNCHERS = ("srun:", "slurmstepd:", "[rank")  # they tell that a program failed; the program tells why
_SEE_ABOVE = "(see above)"  # a script that tells the same
_LABEL = re.compile(r"^\d+:\s+")  # srun's, of a task
_MOST_ITEMS = 3


def last_error(log: Path) -> str:
    """The last line of a log that tells an error, with the list that it opens; else the log's last line."""
    lines = _tail(log)
    errors = [place for place, line in enumerate(lines) if _is_error(line)]
    told = [place for place in errors if not lines[place].startswith(_LAUNCHERS) and _SEE_ABOVE not in lines[place]]
    if told and lines[told[-1]].endswith(":"):
        after = [_LABEL.sub("", line) for line in lines[told[-1] + 1:]]
        items = [line.removeprefix("- ") for line in after if line.startswith("- ")]
        return f"{lines[told[-1]]} {'; '.join(items[:_MOST_ITEMS])}".strip()
    chosen = (told or errors)[-1:]
    return lines[chosen[0]] if chosen else (lines or ["nothing was written"])[-1]


def tells_error(log: Path) -> bool:
    """Whether the end of a log tells an error; a program that was stopped or killed has told none."""
    return any(map(_is_error, _tail(log)))


def last_lines(log: Path, number: int) -> tuple[str, ...]:
    """The last lines that hold anything."""
    return tuple(_tail(log)[-number:])


def _is_error(line: str) -> bool:
    return any(mark in line for mark in _ERROR_MARKS)


def _tail(log: Path) -> list[str]:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
