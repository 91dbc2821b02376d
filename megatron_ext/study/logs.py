"""What the logs of stages say."""

from __future__ import annotations

from pathlib import Path

_TAIL_BYTES = 64 * 1024
_ERROR_MARKS = ("error:", "Error:")
_LAUNCHERS = ("srun:", "slurmstepd:", "[rank")  # they tell that a program failed; the program tells why


def last_error(log: Path) -> str:
    """The last line of a log that tells an error, else its last line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if any(mark in line for mark in _ERROR_MARKS)]
    told = [line for line in errors if not line.startswith(_LAUNCHERS)]
    return (told or errors or lines or ["nothing was written"])[-1]
