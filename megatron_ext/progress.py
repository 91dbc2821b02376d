"""Progress of long work as plain lines: they read well in a terminal and in a Slurm log."""

from __future__ import annotations

import re
import sys
import time

PROGRESS_LINE = re.compile(r"(?P<done>[\d,]+)/(?P<total>[\d,]+) \S.* {2}ETA (?P<eta>.+)$")
"""A line that Progress has printed."""


class Progress:
    """Print `label  done/total unit  percent  rate  ETA`, at most one line every `interval_seconds`.

    `done` counts the unit of the total (documents, chunks); `amount` may count something else for the rate (tokens).
    Work that was found finished when a run goes on (`already_done`) does not enter the rate.
    """

    def __init__(self, label: str, total: int, unit: str, *, rate_unit: str | None = None, already_done: int = 0,
                 interval_seconds: float = 5.0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.rate_unit = rate_unit or unit
        self.done = already_done
        self._amount = 0.0
        self._done_at_start = already_done
        self._started = self._printed = time.monotonic()
        self._interval = interval_seconds
        if already_done:
            print(f"{label}: {already_done:,} of {total:,} {unit} were done before, going on", flush=True)

    def advance(self, done: int = 1, amount: float | None = None) -> None:
        """Count `done` more units, and `amount` of the rate's unit (default: the same)."""
        self.done += done
        self._amount += done if amount is None else amount
        now = time.monotonic()
        if now - self._printed >= self._interval or self.done >= self.total:
            self._printed = now
            print(self._line(now), file=sys.stdout, flush=True)

    def _line(self, now: float) -> str:
        elapsed = max(now - self._started, 1e-9)
        newly_done = self.done - self._done_at_start
        remaining = (self.total - self.done) * elapsed / newly_done if newly_done else float("inf")
        percent = 100 * self.done / self.total if self.total else 100
        return (f"{self.label}: {self.done:,}/{self.total:,} {self.unit}  {percent:.0f} %  "
                f"{self._amount / elapsed:,.1f} {self.rate_unit}/s  ETA {format_seconds(remaining)}")


class ByteProgress:
    """`Progress` in MiB of work that counts bytes."""

    def __init__(self, label: str, num_bytes: int) -> None:
        self._progress = Progress(label, max(1, num_bytes >> 20), "MiB")
        self._done = 0

    def advance(self, num_bytes: int) -> None:
        """Count so many bytes more."""
        before, self._done = self._done, self._done + num_bytes
        if mebibytes := (self._done >> 20) - (before >> 20):
            self._progress.advance(mebibytes)


def format_seconds(seconds: float) -> str:
    """A duration as people say it: 42 s, 3 min 10 s, 2 h 05 min."""
    if seconds == float("inf"):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
