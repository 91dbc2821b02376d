"""What each task can tell at this scale, before any verdict: noise, signal, monotonicity and distance from chance.

Noise is how much a run's score still moves over its last checkpoints, signal how far models outside the comparison
differ (Heineman et al., "Signal and Noise", arXiv 2508.13144): never the compared arms, whose difference is the
question. That paper divides both by the mean; NPM crosses zero, so both stay in points here, and their ratio is the
same. Monotonicity and distance from chance as in FineWeb2's choice of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.contrasts import Contrasts
from evaluation.curves import Trajectories
from evaluation.matched import Evaluation, MatchedTask, load_evaluations, refuse_incomparable
from evaluation.statistics import settle
from megatron_ext.errors import UserError

LAST = 5
"""Checkpoints at the end of a run whose scores are its noise."""
_FEWEST = 3
Scores = Mapping[str, float]
"""Task -> NPM."""


def task_signal(study: Contrasts[MatchedTask], final: Sequence[Evaluation], runs: Sequence[Mapping[int, Evaluation]],
                outside: Mapping[str, Path], given: Sequence[str]) -> list[dict[str, Any]]:
    """One row a task: noise, signal and their ratio, monotonicity, distance from chance; null where it is not known.

    Args:
        study: the compared models, final checkpoints.
        runs: tokens seen -> evaluation, in the order of tokens, of each training run.
        outside: name -> evaluation of a model that is not compared.
        given: conditions that were not trained, which count as outside too.

    Raises UserError for an evaluation that was made in another way, or of a compared model.
    """
    strangers = _load_outside(final, outside, given) if outside else []
    spread = [*strangers, *(one.results for one in final if one.model.condition in given)]
    scored = [{tokens: _npm(one.results) for tokens, one in run.items()} for run in runs]
    return [_of_task(task, study, scored, [_npm(results) for results in spread], given) for task in study.tasks]


def runs_along(along: Trajectories) -> list[dict[int, Evaluation]]:
    """Tokens seen -> evaluation, in the order of tokens, of each training run."""
    found = []
    for points in along.values():
        num_seeds = min(map(len, points.values()), default=0)
        found += [{tokens: seeds[number] for tokens, seeds in points.items()} for number in range(num_seeds)]
    return found


def _load_outside(final: Sequence[Evaluation], outside: Mapping[str, Path],
                  given: Sequence[str]) -> list[dict[str, Any]]:
    loaded = load_evaluations({name: [place] for name, place in outside.items()}, list(outside))
    refuse_incomparable(final[0], loaded)
    compared = {content: one.name for one in final if one.model.condition not in given for content in one.content}
    for one in loaded:
        copies = [compared[content] for content in one.content if content in compared]
        if copies:
            raise UserError(f"outside.{one.model.condition}: it is the same as {copies[0]}, which is compared; the "
                            "spread of compared models is the question, not the scale")
    return [one.results for one in loaded]


def _of_task(task: MatchedTask, study: Contrasts[MatchedTask], runs: Sequence[Mapping[int, Scores]],
             spread: Sequence[Scores], given: Sequence[str]) -> dict[str, Any]:
    curves = [{tokens: scores[task.name] for tokens, scores in run.items()} for run in runs]
    noise = _noise([list(curve.values())[-LAST:] for curve in curves])
    signal = _spread([scores[task.name] for scores in spread])
    trained = [name for name in dict.fromkeys(model.condition for model in study.models) if name not in given]
    return {
        "task": task.name, "num_items": task.num_items, "noise": _settled(noise), "signal": _settled(signal),
        "ratio": _settled(signal / noise) if noise and signal is not None else None,
        "num_outside": len(spread), "num_runs": sum(len(curve) >= _FEWEST for curve in curves),
        "monotonicity": _settled(_mean([_monotonicity(curve) for curve in curves if len(curve) >= _FEWEST])),
        "from_chance": _settled(_mean([_from_chance(study, name, task) for name in trained])),
    }


def _noise(last: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within runs, pooled over them."""
    within = [np.var(values, ddof=1) for values in last if len(values) >= _FEWEST and np.isfinite(values).all()]
    return float(np.sqrt(np.mean(within))) if within else None


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over models."""
    return float(np.std(values, ddof=1)) if len(values) >= 2 and np.isfinite(values).all() else None


def _monotonicity(curve: Mapping[int, float]) -> float | None:
    """Spearman's correlation of a run's scores with its tokens; null where the score never moves."""
    from scipy.stats import spearmanr

    values = list(curve.values())
    if not np.isfinite(values).all() or len(set(values)) < 2:
        return None
    return float(spearmanr(list(curve), [settle(value) for value in values]).statistic)


def _from_chance(study: Contrasts[MatchedTask], condition: str, task: MatchedTask) -> float | None:
    """NPM in standard errors; chance is 0."""
    estimate = study.score(condition, [task])
    return estimate["value"] / estimate["standard_error"] if estimate["standard_error"] else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _settled(value: float | None) -> float | None:
    return None if value is None else settle(value)


def _npm(results: Mapping[str, Any]) -> Scores:
    return {name: math.nan if one["npm"] is None else one["npm"] for name, one in results["tasks"].items()}
