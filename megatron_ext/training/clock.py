"""Where the time of an iteration goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch


class Clock:
    """Seconds by name since the last reading. A part measured inside another counts for itself alone."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._inside: list[float] = []
        """For each open part, the seconds of the parts inside it."""

    @contextmanager
    def measure(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Count the time until the end of the block; `wait` for the GPU at both ends, or count the host's time alone.
        """
        if wait:
            _synchronize()
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            if wait:
                _synchronize()
            elapsed = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed - self._inside.pop()
            if self._inside:
                self._inside[-1] += elapsed

    def measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls counted."""
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return function(*args, **kwargs)

        return call

    def read(self) -> dict[str, float]:
        """Seconds by name, and start anew."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
