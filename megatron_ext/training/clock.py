"""Where the time of an iteration goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A moment, as torch.cuda.Event: of a GPU, which comes when its work until then is done."""

    def query(self) -> bool:
        """Whether it has come."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from here to a later one."""


@dataclass(frozen=True)
class _HostMark:
    seconds: float = field(default_factory=time.perf_counter)

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _HostMark) -> float:
        return 1e3 * (end.seconds - self.seconds)


@dataclass
class _Part:
    name: str
    start: Mark
    end: Mark | None = None
    inside: list[_Part] = field(default_factory=list)

    def seconds(self, *, own: bool) -> float:
        """Of the whole part, or without the parts inside it that are measured by the same clock."""
        seconds = self.start.elapsed_time(self.end) / 1e3
        if own:
            seconds -= sum(part.seconds(own=False) for part in self.inside if type(part.start) is type(self.start))
        return seconds


class Clock:
    """Seconds by name since the last reading. A part measured inside another counts for itself alone.

    On a GPU parts are the GPU's time, and nobody waits for it: a part whose end it has not reached at a reading, such
    as the last one of an iteration, counts in the next.
    """

    def __init__(self) -> None:
        self._open: list[_Part] = []
        self._done: list[_Part] = []

    @contextmanager
    def measure(self, name: str, *, on_host: bool = False) -> Iterator[None]:
        """Count the time until the end of the block, of the device or `on_host` of the host."""
        mark = _HostMark if on_host else _mark
        part = _Part(name, mark())
        if self._open:
            self._open[-1].inside.append(part)
        self._open.append(part)
        try:
            yield
        finally:
            part.end = mark()
            self._done.append(self._open.pop())

    def measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls counted."""
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return function(*args, **kwargs)

        return call

    def read(self) -> dict[str, float]:
        """Seconds by name of what has ended, and start anew."""
        seconds: dict[str, float] = {}
        done, self._done = self._done, []
        for part in done:
            if part.end.query():
                seconds[part.name] = seconds.get(part.name, 0.0) + part.seconds(own=True)
            else:
                self._done.append(part)
        return seconds


def _mark() -> Mark:
    if not torch.cuda.is_available():
        return _HostMark()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
