"""The status of studies as text for a terminal of any width: stages, what runs, losses, failures, GPU-hours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from megatron_ext.study.live import DONE, FAILED, REFUSED, RUNNING, SETTLED, WAITING, StageStatus

_BLOCKS = "▁▂▃▄▅▆▇█"
_NOT_FINITE = "×"
_SPARK_WIDTH = 24
_BAR_WIDTH = 12
_STYLES = {DONE: "green", RUNNING: "cyan", FAILED: "bold red", "stopped": "yellow", REFUSED: "yellow"}


def screen(stages: Sequence[StageStatus], when: str) -> RenderableType:
    """Everything, `when` (a time of day) in the last line."""
    parts: list[RenderableType] = [_overview(stages)]
    if active := [one for one in stages if one.state not in (*SETTLED, WAITING, FAILED)]:
        parts.append(_active(active))
    if trained := [one for one in stages if one.training and one.training.losses]:
        parts.append(_losses(trained))
    parts += [_reason(one) for one in stages if one.state in (FAILED, REFUSED)]
    spaced = [line for part in parts for line in (part, Text(""))]
    return Group(*spaced, Text(f"{_hours(stages)}  ·  {when}"))


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """Means of `width` equal stretches as blocks, the lowest to the highest; × where one is no finite number."""
    size = min(width, len(values))
    edges = [len(values) * place // size for place in range(size + 1)] if size else [0]
    means = [math.fsum(values[a:b]) / (b - a) if all(map(math.isfinite, values[a:b])) else math.nan
             for a, b in pairwise(edges)]
    known = [mean for mean in means if math.isfinite(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] if math.isfinite(mean) else _NOT_FINITE for mean in means)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title.lstrip(">"), justify="right" if title.startswith(">") else "left", overflow="fold")
    return table


def _overview(stages: Sequence[StageStatus]) -> Table:
    """A line a stage of the graph: how many of its parts are in which state."""
    table = _table("stage", "", ">done", "others", ">GPU-h", ">left")
    for stage in dict.fromkeys(one.stage for one in stages):
        members = [one for one in stages if one.stage == stage]
        states = Counter(one.state for one in members)
        others = Text(", ").join(Text(f"{number} {state}", style=_STYLES.get(state, "")) for state, number
                                 in states.items() if state != DONE)
        table.add_row(stage, _bar(states[DONE], len(members)), f"{states[DONE]}/{len(members)}", others,
                      _hour(sum(one.spent_hours for one in members)), _hour(_left(members)))
    return table


def _active(stages: Sequence[StageStatus]) -> Table:
    table = _table("stage", "state", "", ">progress", "ETA")
    for one in stages:
        counted = one.done is not None and one.total
        table.add_row(one.name, Text(one.state, style=_STYLES.get(one.state, "")),
                      _bar(one.done or 0, one.total or 0) if counted else "",
                      f"{one.done:,}/{one.total:,}" if counted else "", one.eta or one.detail)
    return table


def _losses(stages: Sequence[StageStatus]) -> Table:
    table = _table("training loss", "", ">last", ">iteration")
    for one in stages:
        training = one.training
        assert training is not None
        table.add_row(one.name, sparkline(training.losses), f"{training.losses[-1]:.3f}",
                      f"{training.iteration:,}/{training.train_iters:,}")
    return table


def _reason(one: StageStatus) -> Text:
    """Why a stage failed, with the end of its log, or was refused."""
    lines = [line for line in one.last_lines if line not in one.detail]
    return Text.assemble((f"{one.name} {one.state}", _STYLES[one.state]), f": {one.detail}",
                         *(f"\n    {line}" for line in lines))


def _hours(stages: Sequence[StageStatus]) -> str:
    left, unknown = _left(stages), sum(one.left_hours is None for one in stages)
    told = f"about {_hour(left) if left else 0} left"
    if unknown:
        told += f", without {unknown} stages whose cost is not known"
    if all(one.state in SETTLED for one in stages):
        told = "nothing left to do"
    return f"{_hour(sum(one.spent_hours for one in stages))} GPU-hours spent, {told}"


def _left(stages: Iterable[StageStatus]) -> float:
    return math.fsum(one.left_hours or 0.0 for one in stages)


def _hour(hours: float) -> str:
    return "–" if not hours else "<0.01" if hours < 0.01 else f"{hours:,.0f}" if hours >= 100 else f"{hours:.2f}"


def _bar(done: int, total: int) -> str:
    filled = _BAR_WIDTH * done // total if total else 0
    return "█" * filled + "░" * (_BAR_WIDTH - filled)
