"""Which text survives the checks: acceptance by length, number density and scores of the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

LENGTH, NUMBERS = "num_source_tokens", "numbers_per_100_words"
SCORES = "scores"
MAX_BINS = 5
_DIGITS = 2
"""Decimals by which values are told apart."""


class Acceptance:
    """Counts of one style, window by window: what was asked for and what survived, by the source's properties."""

    def __init__(self) -> None:
        self._asked: dict[str, Counter[float]] = {}
        self._survived: dict[str, Counter[float]] = {}

    def add(self, asked: pa.Table, survived: pa.Table) -> None:
        """Count rows of chunks: one for each chunk that was asked for, one for each that survived."""
        for rows, counts in ((asked, self._asked), (survived, self._survived)):
            for name, values in _properties(rows):
                counts.setdefault(name, Counter()).update(values)

    def result(self) -> dict[str, Any]:
        """Property -> `mean` over all chunks, `survivor_mean`, and `bins` of about equally many chunks, each with its

        smallest and largest value, chunks and survivors.
        """
        return {name: {"mean": _mean(counts), "survivor_mean": _mean(self._survived.get(name, Counter())),
                       "bins": list(_bins(counts, self._survived.get(name, Counter())))}
                for name, counts in sorted(self._asked.items())}


def _properties(rows: pa.Table) -> Iterator[tuple[str, list[float]]]:
    for name in (LENGTH, NUMBERS):
        yield name, np.round(rows[name].to_numpy(), _DIGITS).tolist()
    by_score: dict[str, list[float]] = {}
    for scores in rows[SCORES].to_pylist():
        for name, value in scores or ():
            if value is not None and np.isfinite(value):
                by_score.setdefault(f"score {name}", []).append(round(value, _DIGITS))
    yield from by_score.items()


def _mean(counts: Counter[float]) -> float | None:
    num = counts.total()
    return round(sum(value * count for value, count in sorted(counts.items())) / num, 4) if num else None


def _bins(asked: Counter[float], survived: Counter[float]) -> Iterator[dict[str, Any]]:
    """Consecutive values, filled until a bin has its share of the chunks; equal values are never parted."""
    values = sorted(asked)
    share = asked.total() / MAX_BINS
    start = num_before = 0
    for place, value in enumerate(values):
        num_before += asked[value]
        is_last = place == len(values) - 1
        inside = values[start:place + 1]
        if is_last or num_before >= share * (1 + _num_closed(start, values, asked, share)):
            num_asked, num_survived = (sum(counts[one] for one in inside) for counts in (asked, survived))
            yield {"from": inside[0], "to": inside[-1], "num_chunks": num_asked, "num_survived": num_survived,
                   "survived_percent": round(100 * num_survived / num_asked, 2)}
            start = place + 1


def _num_closed(start: int, values: list[float], asked: Counter[float], share: float) -> int:
    """Shares that the bins before `start` have used up."""
    return int(sum(asked[value] for value in values[:start]) / share + 1e-9)
