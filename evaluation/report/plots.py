"""Line charts as SVG text that goes into the page: small, sharp in print, the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.report.scales import LineLook

_SIZE_INCHES = (3.9, 2.6)
_WIDE_INCHES = (5.2, 2.8)
_INK, _GRID = "#4a5560", "#e4e7ea"


def loss_charts(curves: Mapping[str, Sequence[dict[str, Any]]], looks: Mapping[str, LineLook]) -> list[dict[str, str]]:
    """A chart of the training loss, and one of held-out bits per byte for each source: title and SVG of each.

    `curves`: condition -> one dict of curves a seed, see evaluation.report.training.
    """
    charts = [{"title": "Training loss", "unit": "nats per token",
               "svg": _chart("train", [(name, seed["train"]["tokens"], seed["train"]["loss"])
                                       for name, seeds in curves.items() for seed in seeds], looks, markers=False)}]
    sources = dict.fromkeys(name for seeds in curves.values() for seed in seeds for name in seed["validation"])
    for source in sources:
        lines = [(name, seed["validation"][source]["tokens"], seed["validation"][source]["bits_per_byte"])
                 for name, seeds in curves.items() for seed in seeds if source in seed["validation"]]
        charts.append({"title": f"Held-out “{source.replace('_', ' ')}”", "unit": "bits per byte",
                       "svg": _chart(f"validation-{source}", lines, looks, markers=True)})
    return charts


def npm_chart(curves: Mapping[str, Sequence[dict[str, Any]]], looks: Mapping[str, LineLook]) -> str:
    """SVG of NPM over tokens: a line a condition, 95 % intervals as bands. `curves`: see evaluation.curves."""
    def draw(axes: Any) -> None:
        for condition, points in curves.items():
            known = [point for point in points if point["npm"]["value"] is not None]
            tokens = [point["tokens"] for point in known]
            _line(axes, tokens, [point["npm"]["value"] for point in known], looks[condition], markers=True)
            bands = [point for point in known if point["npm"]["low"] is not None]
            axes.fill_between([point["tokens"] for point in bands], [point["npm"]["low"] for point in bands],
                              [point["npm"]["high"] for point in bands], color=looks[condition].color, alpha=0.14,
                              linewidth=0)

    return _framed("npm", draw, _WIDE_INCHES)


def _chart(name: str, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], looks: Mapping[str, LineLook],
           markers: bool) -> str:
    """One chart: a thin line a seed, and a strong one for a condition's mean where it has several."""
    def draw(axes: Any) -> None:
        draw_lines(axes, lines, looks, markers)

    return _framed(name, draw, _SIZE_INCHES)


def draw_lines(axes: Any, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
               looks: Mapping[str, LineLook], markers: bool) -> None:
    """Draw (condition, tokens, values) of each run, in the order of `looks`, which is that of their visibility."""
    for condition in looks:
        if mine := [line for line in lines if line[0] == condition]:
            _draw_condition(axes, mine, looks[condition], markers)


def _framed(name: str, draw: Callable[[Any], None], size_inches: tuple[float, float]) -> str:
    """What `draw` draws, over tokens seen."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10.5,
             "axes.edgecolor": _GRID, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size_inches, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("tokens seen")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(buffer.getvalue(), name)


def _draw_condition(axes: Any, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], look: LineLook,
                    markers: bool) -> None:
    if len(lines) == 1:
        _line(axes, *lines[0][1:], look, markers)
        return
    for _, tokens, values in lines:
        axes.plot(tokens, values, color=look.color, linewidth=0.8, alpha=0.35)
    if len({len(line[1]) for line in lines}) == 1:
        _line(axes, lines[0][1], np.mean([line[2] for line in lines], axis=0), look, markers)


def _line(axes: Any, tokens: Sequence[float], values: Any, look: LineLook, markers: bool) -> None:
    dash, gap = look.dashes
    axes.plot(tokens, values, color=look.color, linewidth=1.9, dash_capstyle="butt",
              linestyle=(0, (dash, gap)) if gap else "-",
              **({"marker": "o", "markersize": look.marker_size, "markeredgewidth": 0} if markers else {}))


def short_count(value: float) -> str:
    """A count as people say it: 950, 38.4k, 10M, 40B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _embedded(svg: str, name: str) -> str:
    """The bare <svg> element, with names that no other chart of the page has."""
    svg = svg[svg.index("<svg"):]
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
                  count=1)
