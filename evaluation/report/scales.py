"""Axes of the charts that are plain HTML: positions in percent, round ticks; and the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONDITION_COLORS = ("#1497f7", "#9b490f", "#118b63", "#792286", "#9b941c", "#0a27f6", "#3d6266", "#504d3a")
"""Apart from each other and from GIVEN_COLOR for readers with protanopia, deuteranopia and tritanopia, too."""
_SOURCE_COLORS = ("#6f9bb3", "#d9a877", "#93b48d", "#b79cc4", "#cf9aa5", "#c7b768", "#93a4d3", "#aab3b4")
GIVEN_COLOR = "#8b949b"
_DASH_PERIOD, _SHORTEST_DASH = 12.0, 0.4  # widths of the line; share of the period
_MARKERS = (7.5, 3.5)  # points


@dataclass(frozen=True)
class Scale:
    """A linear axis that is drawn in percent of its width."""

    low: float
    high: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """Position of a value, percent, kept on the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


def nice_scale(values: Sequence[float | None], include: Sequence[float] = ()) -> Scale:
    """An axis with round ends around all values."""
    known = [value for value in [*values, *include] if value is not None and math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    if high - low < 1e-9:  # a single value stands in the middle
        low, high = low - 1, high + 1
    step = _nice_step((high - low) / 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [round(number * step, 10) for number in range(first, last + 1)]
    return Scale(ticks[0], ticks[-1], ticks)


def condition_colors(names: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """A colour for each condition; given models are grey."""
    trained = [name for name in names if name not in given]
    colors = {name: CONDITION_COLORS[i % len(CONDITION_COLORS)] for i, name in enumerate(trained)}
    return colors | dict.fromkeys(given, GIVEN_COLOR)


@dataclass(frozen=True)
class LineLook:
    """How a condition's line is drawn. Lines that are one above the other all show: each has shorter dashes and smaller
    markers than the one drawn before it."""

    color: str
    dashes: tuple[float, float]
    """Dash and gap, in widths of the line."""
    marker_size: float
    """Diameter, points."""


def line_looks(colors: Mapping[str, str]) -> dict[str, LineLook]:
    """A look for each condition, in the order in which they are drawn; the first line has no gaps."""
    last = max(1, len(colors) - 1)
    shares = [1 - (1 - _SHORTEST_DASH) * number / last for number in range(len(colors))]
    dashes = [round(_DASH_PERIOD * share, 2) for share in shares]
    sizes = [round(_MARKERS[0] + (_MARKERS[1] - _MARKERS[0]) * number / last, 2) for number in range(len(colors))]
    return {name: LineLook(color, (dash, round(_DASH_PERIOD - dash, 2)), size)
            for (name, color), dash, size in zip(colors.items(), dashes, sizes, strict=True)}


def source_colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each source of data."""
    return {name: _SOURCE_COLORS[i % len(_SOURCE_COLORS)] for i, name in enumerate(names)}


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
